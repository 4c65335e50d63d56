//! What an input names: `corpus`, `analyze.moments`, `svd[rank=64].checkpoint`.

/// An input as the user wrote it, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target<'t> {
    /// The stage.
    pub(super) stage: &'t str,
    /// The variants of it, by axis and value; none means all.
    pub(super) select: Vec<(&'t str, &'t str)>,
    /// The output.
    pub(super) port: Option<&'t str>,
}

impl<'t> Target<'t> {
    /// Takes an input apart. `None` if it has not the form.
    pub(super) fn parse(text: &'t str) -> Option<Self> {
        let end = text.find(['[', '.']).unwrap_or(text.len());
        let (stage, rest) = text.split_at(end);
        let (select, rest) = match rest.strip_prefix('[') {
            None => (Vec::new(), rest),
            Some(inner) => {
                let (inner, rest) = inner.split_once(']')?;
                let pairs = inner.split(',').map(|pair| pair.split_once('='));
                let pairs = pairs.map(|pair| pair.map(|(axis, value)| (axis.trim(), value.trim())));
                (pairs.collect::<Option<Vec<_>>>()?, rest)
            }
        };
        let port = if rest.is_empty() { None } else { Some(rest.strip_prefix('.')?) };
        let whole = !stage.is_empty() && port != Some("");
        whole.then_some(Self { stage, select, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_are_read() {
        let target = |stage, select: &[(&'static str, &'static str)], port| {
            Some(Target { stage, select: select.to_vec(), port })
        };
        assert_eq!(Target::parse("corpus"), target("corpus", &[], None));
        assert_eq!(Target::parse("analyze.moments"), target("analyze", &[], Some("moments")));
        assert_eq!(Target::parse("svd[rank=64]"), target("svd", &[("rank", "64")], None));
        let both = [("svd.rank", "0.5"), ("layout", "A")];
        assert_eq!(
            Target::parse("svd[svd.rank=0.5, layout=A].checkpoint"),
            target("svd", &both, Some("checkpoint"))
        );
    }

    proptest::proptest! {
        #[test]
        fn what_is_put_together_is_taken_apart_again(
            stage in "[a-z_-]{1,4}",
            select in proptest::collection::vec(("[a-z.]{1,4}", "[a-z0-9 .=é-]{0,4}"), 0..3),
            port in proptest::option::of("[a-z.]{1,4}"),
        ) {
            let pairs: Vec<String> = select.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
            let selector = if pairs.is_empty() { String::new() } else { format!("[{}]", pairs.join(",")) };
            let text = format!("{stage}{selector}{}", port.as_ref().map(|port| format!(".{port}")).unwrap_or_default());
            let found = Target::parse(&text).unwrap();
            let expected: Vec<(&str, &str)> = select.iter().map(|(axis, value)| (axis.as_str(), value.trim())).collect();
            proptest::prop_assert_eq!((found.stage, found.select, found.port), (stage.as_str(), expected, port.as_deref()));
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in ["", ".x", "a.", "a[", "a[]", "a[x]", "a[x=1", "a[x=1]b", "[x=1]"] {
            assert_eq!(Target::parse(text), None, "{text}");
        }
    }
}

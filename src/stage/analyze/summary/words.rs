//! Numbers and places as words. Knows no figures.

/// Layers, and members of one, that a sentence names before it counts the rest.
const NAMED: usize = 8;

/// `12 %`, with one decimal below 10 %.
pub(super) fn percent(share: f64) -> String {
    let (percent, tenths) = (100.0 * share, (1000.0 * share).round());
    match tenths {
        0.0 => "0 %".to_owned(),
        1.0..100.0 => format!("{percent:.1} %"),
        _ => format!("{percent:.0} %"),
    }
}

/// `0.9 to 1.2`, or one number if both are written alike; `–` for nothing.
pub(super) fn range(values: impl Iterator<Item = f64>, write: impl Fn(f64) -> String) -> String {
    let mut bounds: Option<(f64, f64)> = None;
    for x in values {
        let (low, high) = bounds.unwrap_or((x, x));
        bounds = Some((low.min(x), high.max(x)));
    }
    let Some((low, high)) = bounds else { return "–".to_owned() };
    let (low, high) = (write(low), write(high));
    if low == high { low } else { format!("{low} to {high}") }
}

/// With one decimal.
pub(super) fn tenths(x: f64) -> String {
    format!("{x:.1}")
}

/// Without decimals.
pub(super) fn whole(x: f64) -> String {
    format!("{x:.0}")
}

/// The mean; 0 of nothing.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for x in values {
        sum += x;
        count += 1.0;
    }
    if count > 0.0 { sum / count } else { 0.0 }
}

/// `3 heads`, `1 head`, `no head`.
pub(super) fn counted(n: usize, noun: &str) -> String {
    match n {
        0 => format!("no {noun}"),
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}

/// `2 of 24 layers have heads that rest: 3 (heads 1, 4), 5 (head 0)` for what was `found` in each layer; `None` where nothing was.
pub(super) fn places(found: &[(usize, Vec<String>)], noun: &str, what: &str) -> Option<String> {
    let layers: Vec<_> = found.iter().filter(|(_, members)| !members.is_empty()).collect();
    let named = layers.iter().take(NAMED).map(|(layer, members)| {
        let plural = if members.len() == 1 { "" } else { "s" };
        format!("{layer} ({noun}{plural} {})", some(members.iter().cloned(), members.len()))
    });
    let have = if layers.len() == 1 { "has" } else { "have" };
    let text = format!(
        "{} of {} {have} {what}: {}",
        layers.len(),
        counted(found.len(), "layer"),
        some(named, layers.len())
    );
    (!layers.is_empty()).then_some(text)
}

/// The first of `count` names, and how many more there are.
fn some(names: impl Iterator<Item = String>, count: usize) -> String {
    let named = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if count > NAMED { format!("{named} and {} more", count - NAMED) } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_a_decimal_below_a_tenth() {
        let shares = [0.0, 0.0004, 0.0006, 0.05, 0.0994, 0.09951, 0.1, 0.555, 1.0];
        let told = ["0 %", "0 %", "0.1 %", "5.0 %", "9.9 %", "10 %", "10 %", "56 %", "100 %"];
        assert_eq!(shares.map(percent), told);
    }

    #[test]
    fn a_range_of_one_number_is_that_number() {
        assert_eq!(range([1.04, 0.96, 1.0].into_iter(), tenths), "1.0");
        assert_eq!(range([1.04, 0.94].into_iter(), tenths), "0.9 to 1.0");
        assert_eq!(range(std::iter::empty(), whole), "–");
    }

    #[test]
    fn places_are_named_up_to_a_number_and_then_counted() {
        let found = |sizes: &[usize]| {
            let members = |&n: &usize| (0..n).map(|i| i.to_string()).collect();
            sizes.iter().map(members).enumerate().collect::<Vec<(usize, Vec<String>)>>()
        };
        let told = |sizes: &[usize]| places(&found(sizes), "head", "heads that rest");
        assert_eq!(told(&[0, 0]), None);
        assert_eq!(told(&[0, 1]).unwrap(), "1 of 2 layers has heads that rest: 1 (head 0)");
        assert_eq!(
            told(&[2, 0, 1]).unwrap(),
            "2 of 3 layers have heads that rest: 0 (heads 0, 1), 2 (head 0)"
        );
        let many = told(&[10, 1, 1, 1, 1, 1, 1, 1, 1, 1]).unwrap();
        assert!(many.contains(": 0 (heads 0, 1, 2, 3, 4, 5, 6, 7 and 2 more), 1 (head 0)"), "{many}");
        assert!(many.ends_with("7 (head 0) and 2 more"), "{many}");
    }

    #[test]
    fn means_and_counts() {
        assert!((mean([1.0, 2.0].into_iter()) - 1.5).abs() < 1e-15 && mean(std::iter::empty()).abs() < 1e-15);
        assert_eq!([0, 1, 2].map(|n| counted(n, "head")), ["no head", "1 head", "2 heads"]);
    }
}

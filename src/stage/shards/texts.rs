//! Divides documents by their ids. A document's share depends on its text alone, so an edit changes the share it leaves and the one it
//! comes to; and the shares, one after the other, are in the order of the whole.

use super::{Split, ports};
use crate::{
    artifact::{Artifact, texts::Texts},
    engine::action::{Cx, Failure},
};

/// Divides the documents at a port.
pub const fn by_id(port: &'static str) -> Split {
    Split { port, run: split }
}

/// A document whose id is no BLAKE3 digest.
#[derive(Debug, thiserror::Error)]
#[error("document {place} of the input has the id `{id}`, which is not 64 hexadecimal digits")]
struct BadId {
    place: usize,
    id: String,
}

fn split(port: &'static str, of: usize, cx: &Cx<'_>) -> Result<(), Failure> {
    let texts = Texts::load(cx.input(port)?).map_err(Failure::stage)?.0;
    let mut shares = vec![Vec::new(); of];
    for (place, text) in texts.into_iter().enumerate() {
        let Some(share) = share(&text.id, of) else {
            return Err(Failure::stage(BadId { place: place + 1, id: text.id }));
        };
        shares[share].push(text);
    }
    cx.progress.phase("dividing", Some(of as u64), "shards");
    for (share, out) in shares.into_iter().zip(ports(of)) {
        cx.check_stop()?;
        Texts(share).save(&cx.output(out.name)).map_err(Failure::stage)?;
        cx.progress.advance(1);
    }
    Ok(())
}

/// The share that a digest falls into: equal ranges of its first 64 bits.
fn share(id: &str, of: usize) -> Option<usize> {
    let first = id.get(..16).filter(|_| id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let first = u64::from_str_radix(first, 16).ok()?;
    Some(((u128::from(first) * of as u128) >> 64) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::{artifact::texts::Text, stage::testing::Bench};

    fn text(id: &str) -> Text {
        Text {
            id: id.into(),
            source: "a".into(),
            licence: String::new(),
            text: id.into(),
            special_tokens: false,
            marks: vec![],
        }
    }

    fn digests(n: u32) -> Vec<String> {
        let mut ids: Vec<String> =
            (0..n).map(|i| blake3::hash(&i.to_le_bytes()).to_hex().to_string()).collect();
        ids.sort();
        ids
    }

    #[test]
    fn the_shares_one_after_the_other_are_the_whole() {
        let texts = Texts(digests(100).iter().map(|id| text(id)).collect());
        let bench = Bench::new().input("texts", &texts);
        bench.run_in(ports(7), |cx| split("texts", 7, cx)).unwrap();
        let shares: Vec<Texts> = ports(7).iter().map(|port| bench.load(port.name)).collect();
        assert!(shares.iter().all(|share| share.0.len() >= 5), "they are of like size");
        assert_eq!(Texts(shares.into_iter().flat_map(|share| share.0).collect()), texts);
    }

    #[test]
    fn a_document_more_changes_one_share() {
        let run = |ids: &[String]| {
            let bench = Bench::new().input("texts", &Texts(ids.iter().map(|id| text(id)).collect()));
            bench.run_in(ports(5), |cx| split("texts", 5, cx)).unwrap();
            bench.bytes()
        };
        let mut ids = digests(40);
        let before = run(&ids);
        ids.remove(17);
        let after = run(&ids);
        assert_eq!(before.iter().filter(|(name, bytes)| after[*name] != **bytes).count(), 1);
    }

    #[test]
    fn an_id_that_is_no_digest_is_told_with_its_place() {
        let texts = Texts(vec![text(&digests(1)[0]), text("page 1")]);
        let bench = Bench::new().input("texts", &texts);
        let error = bench.run_in(ports(2), |cx| split("texts", 2, cx)).unwrap_err().to_string();
        assert_eq!(error, "document 2 of the input has the id `page 1`, which is not 64 hexadecimal digits");
    }

    #[test]
    fn an_empty_corpus_has_empty_shares() {
        let bench = Bench::new().input("texts", &Texts::default());
        bench.run_in(ports(3), |cx| split("texts", 3, cx)).unwrap();
        assert_eq!(bench.load::<Texts>("002"), Texts::default());
    }

    proptest! {
        #[test]
        fn shares_are_ranges(a: u64, b: u64, of in 1_usize..=1000) {
            let share = |x: u64| share(&format!("{x:016x}{:048}", 0), of).unwrap();
            prop_assert!(share(a) < of);
            prop_assert!((a <= b) == (share(a) <= share(b)) || share(a) == share(b));
            prop_assert_eq!((share(0), share(u64::MAX)), (0, of - 1));
        }
    }
}

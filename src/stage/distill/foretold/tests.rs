//! Rows are those of the documents of a batch, and what is missing is told.

use std::path::Path;

use super::*;
use crate::artifact::{
    Artifact,
    checkpoint::files_in,
    predictions::{About, Writer},
};

fn document(n: u32) -> Vec<u32> {
    (0..n).map(|i| (n + i) % 20).collect()
}

/// Token `t` of a document has the one entry `t`, with the weight 1 / (t + 1).
fn predictions(dir: &Path, lengths: &[u32]) -> Predictions {
    let mut writer = Writer::create(dir, About { entries: Entries::Draws, vocab_size: 20 }).unwrap();
    for &n in lengths {
        let kept = Document {
            lengths: (0..n).map(|t| u32::from(t + 1 < n)).collect(),
            entropies: vec![0.5; n as usize],
            ids: (0..n - 1).collect(),
            weights: (1..n).map(|t| 1.0 / t as f32).collect(),
        };
        writer.push(&document(n), &kept).unwrap();
    }
    writer.finish().unwrap();
    Predictions::load(&files_in(dir).unwrap()).unwrap()
}

#[test]
fn a_batch_gets_the_rows_of_its_documents_and_of_their_beginnings() {
    let dir = tempfile::tempdir().unwrap();
    let documents = [document(5), document(9)];
    let foretold = Foretold::new(predictions(dir.path(), &[9, 5]), (&documents, &[4, 7]), 20).unwrap();
    let parts = [&documents[1][..], &documents[0][..4], &documents[1][..7]];
    let kept = foretold.rows(&Batch::new(parts)).unwrap();
    assert_eq!((kept.len(), kept.form()), (9 + 4 + 7, Form::Draws));
    let expected = |t: usize, n: usize| if t + 1 < n { vec![t as u32] } else { vec![] };
    let rows = (0..9)
        .map(|t| expected(t, 9))
        .chain((0..4).map(|t| expected(t, 5)))
        .chain((0..7).map(|t| expected(t, 9)));
    for (i, ids) in rows.enumerate() {
        assert_eq!((kept.row(i).ids, kept.row(i).entropy), (&ids[..], 0.5), "row {i}");
    }
    assert!(foretold.rows(&Batch::new([&[1, 2][..]])).is_err());
}

#[test]
fn what_is_missing_is_told_before_a_step() {
    let dir = tempfile::tempdir().unwrap();
    let new = |documents: &[Vec<u32>], vocab_size| {
        let all = predictions(dir.path(), &[5]);
        Foretold::new(all, (documents, &[]), vocab_size).map(|_| ()).unwrap_err().to_string()
    };
    let missing = new(&[document(5), document(7)], 20);
    assert!(missing.contains("the document of 7 tokens that begins with [7, 8, 9"), "{missing}");
    assert!(new(&[document(5)], 31).contains("vocabulary of 31 tokens, the teacher one of 20"));
}

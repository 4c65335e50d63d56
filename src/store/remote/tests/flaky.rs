//! Uploads in parts to a service that fails now and then.

use std::sync::atomic::AtomicU32;

use object_store::{
    Error, MultipartId, PutPayload, PutResult,
    multipart::{MultipartStore, PartId},
};

use super::*;

/// Memory whose uploads fail as planned.
#[derive(Default)]
struct Flaky {
    memory: Arc<InMemory>,
    /// So many parts fail before one works.
    parts: AtomicU32,
    /// The answer to so many completions is lost, although they worked.
    answers: AtomicU32,
    /// So many completions fail.
    completions: AtomicU32,
    aborted: AtomicU32,
}

/// Fails as often as the number says.
fn fail(left: &AtomicU32) -> object_store::Result<()> {
    let one_less = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    one_less.map_or(Ok(()), |_| Err(Error::Generic { store: "flaky", source: "not now".into() }))
}

#[async_trait::async_trait]
impl MultipartStore for Flaky {
    async fn create_multipart(&self, path: &Path) -> object_store::Result<MultipartId> {
        self.memory.create_multipart(path).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        index: usize,
        data: PutPayload,
    ) -> object_store::Result<PartId> {
        fail(&self.parts)?;
        self.memory.put_part(path, id, index, data).await
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> object_store::Result<PutResult> {
        fail(&self.completions)?;
        let done = self.memory.complete_multipart(path, id, parts).await?;
        fail(&self.answers).map(|()| done)
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> object_store::Result<()> {
        self.aborted.fetch_add(1, Ordering::SeqCst);
        self.memory.abort_multipart(path, id).await
    }
}

/// Pushes a file of several parts, and says how that went and how often an upload was aborted.
fn push(flaky: Flaky) -> (Result<Pushed>, u32) {
    let flaky = Arc::new(flaky);
    let place = Place {
        store: flaky.memory.clone(),
        parts: Some(flaky.clone()),
        prefix: Path::from("p"),
        writable: true,
    };
    let small = Tuning { part: 1000, attempts: 4, pause: Duration::from_millis(1), ..tuning() };
    let remote = Remote::at("flaky", place, ours(), small).unwrap();
    let (here, key) = (Local::new(), Digest::of(b"k"));
    let bytes: Vec<u8> = (0..25_500_u32).map(|i| (i % 251) as u8).collect();
    let record = here.make(&key, &[("out", "a", &bytes)]);
    let done = remote.push(&here.store, &record);
    let pulled = remote.pull(&Local::new().store, &key).unwrap();
    assert_eq!(pulled.is_some(), done.is_ok(), "a record is there when its blobs are");
    (done, flaky.aborted.load(Ordering::SeqCst))
}

#[test]
fn parts_that_fail_are_sent_again() {
    let (done, aborted) = push(Flaky { parts: 3.into(), ..Flaky::default() });
    assert_eq!((done.unwrap().bytes, aborted), (25_500, 0));
}

#[test]
fn an_upload_whose_parts_go_on_failing_is_given_up() {
    let (done, aborted) = push(Flaky { parts: u32::MAX.into(), ..Flaky::default() });
    assert!(matches!(done, Err(RemoteError::Service { doing: "write", .. })), "{done:?}");
    assert_eq!(aborted, 1);
}

#[test]
fn a_completion_whose_answer_was_lost_counts() {
    let (done, aborted) = push(Flaky { answers: 1.into(), ..Flaky::default() });
    assert_eq!((done.unwrap().blobs, aborted), (1, 0));
}

#[test]
fn a_completion_that_failed_does_not() {
    let (done, aborted) = push(Flaky { completions: 1.into(), ..Flaky::default() });
    assert!(matches!(done, Err(RemoteError::Service { doing: "complete", .. })), "{done:?}");
    assert_eq!(aborted, 1);
}

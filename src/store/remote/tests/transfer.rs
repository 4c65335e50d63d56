//! Connections that are slow, stall, or end too early.

use std::time::Instant;

use super::{
    server::{Act, Server},
    *,
};

const SIZE: usize = 300_000;

/// A server with a pushed record, its key, and the end of the name of its one blob.
fn served(etag: Option<&str>) -> (Server, Digest, String) {
    let (local, memory) = (Local::new(), Arc::new(InMemory::new()));
    let key = Digest::of(b"k");
    let bytes: Vec<u8> = (0..SIZE).map(|i| (i * i % 251) as u8).collect();
    let record = local.make(&key, &[("out", "a", &bytes)]);
    let remote = in_memory(&memory, "p", ours());
    remote.push(&local.store, &record).unwrap();
    let blob = record.outputs["out"].files[0].blob.to_string();
    (Server::new(remote.objects(), etag), key, blob[2..].to_owned())
}

fn impatient() -> Tuning {
    Tuning {
        stall: Duration::from_millis(400),
        pause: Duration::from_millis(5),
        attempts: 3,
        ..Tuning::default()
    }
}

fn remote(server: &Server) -> Remote {
    Remote::open(&format!("{}/p", server.url), &BTreeMap::new(), ours(), impatient()).unwrap()
}

#[test]
fn a_body_that_stalls_or_ends_too_early_is_taken_up_where_it_stopped() {
    for etag in [Some("tag"), None] {
        for act in [Act::Stall(100_000), Act::Cut(100_000)] {
            let (server, key, blob) = served(etag);
            server.plan(&blob, &[act]);
            let local = Local::new();
            let moved = Arc::new(std::sync::atomic::AtomicU64::new(0));
            let count = moved.clone();
            let remote = remote(&server).on_bytes(move |moved| {
                let Moved::Down(bytes) = moved else { panic!("{moved:?}") };
                count.fetch_add(bytes, Ordering::Relaxed);
            });
            remote.pull(&local.store, &key).unwrap().unwrap();
            let ranges = server.ranges(&blob);
            assert_eq!(ranges.len(), 2, "{act:?} {ranges:?}");
            assert!(ranges[1].as_ref().unwrap().starts_with("100000-"), "{act:?} {ranges:?}");
            let total = moved.load(Ordering::Relaxed);
            assert!((SIZE as u64..SIZE as u64 + 2000).contains(&total), "no byte comes twice: {total}");
            assert!(local.store.verify().unwrap().is_sound());
        }
    }
}

#[test]
fn a_slow_body_that_never_stalls_comes_through() {
    let (server, key, blob) = served(Some("tag"));
    server.plan(&blob, &[Act::Drip(15_000, Duration::from_millis(100))]);
    let started = Instant::now();
    remote(&server).pull(&Local::new().store, &key).unwrap().unwrap();
    assert!(started.elapsed() > impatient().stall * 3, "longer than any single wait");
    assert_eq!(server.ranges(&blob), [None]);
}

#[test]
fn a_body_that_stalls_again_and_again_is_given_up() {
    let (server, key, blob) = served(Some("tag"));
    server.plan(&blob, &[Act::Stall(1000), Act::Stall(0), Act::Stall(10), Act::Stall(10)]);
    let local = Local::new();
    let error = remote(&server).pull(&local.store, &key).unwrap_err();
    assert!(matches!(error, RemoteError::Stalled { .. }), "{error:?}");
    assert!(error.to_string().contains("nothing moved for 0.4 s"), "{error}");
    assert_eq!(server.ranges(&blob).len(), 3);
    local.has_nothing();
}

#[test]
fn a_connection_that_always_ends_too_early_is_given_up() {
    let (server, key, blob) = served(None);
    server.plan(&blob, &[Act::Cut(1000); 20]);
    let local = Local::new();
    let error = remote(&server).pull(&local.store, &key).unwrap_err();
    assert!(matches!(error, RemoteError::Service { .. } | RemoteError::Cut { .. }), "{error:?}");
    local.has_nothing();
}

#[test]
fn a_service_without_ranges_gives_the_whole_again() {
    let (server, key, blob) = served(None);
    server.plan(&blob, &[Act::Stall(100_000), Act::NoRange, Act::NoRange]);
    let local = Local::new();
    let patient = Tuning { attempts: 6, ..impatient() };
    let remote = Remote::open(&format!("{}/p", server.url), &BTreeMap::new(), ours(), patient).unwrap();
    remote.pull(&local.store, &key).unwrap().unwrap();
    assert_eq!(server.ranges(&blob).last(), Some(&None), "{:?}", server.ranges(&blob));
    assert!(local.store.verify().unwrap().is_sound());
}

#[test]
fn a_service_that_is_busy_is_asked_again() {
    let (server, key, blob) = served(Some("tag"));
    server.plan(&blob, &[Act::Status(503), Act::Status(500), Act::Status(503)]);
    remote(&server).pull(&Local::new().store, &key).unwrap().unwrap();
    server.plan(&blob, &[Act::Status(403)]);
    let error = remote(&server).pull(&Local::new().store, &key).unwrap_err();
    assert!(matches!(error, RemoteError::Service { .. }), "{error:?}");
    assert_eq!(server.ranges(&blob).len(), 5, "what is forbidden is asked once");
}

#[test]
fn a_size_that_cannot_be_right_ends_the_transfer_at_once() {
    let (server, key, blob) = served(Some("tag"));
    server.plan(&blob, &[Act::Claim(10_000_000_000)]);
    let local = Local::new();
    let error = remote(&server).pull(&local.store, &key).unwrap_err();
    assert!(error.is_refusal(), "{error:?}");
    server.plan(&key.to_string()[2..], &[Act::Claim(10_000_000_000)]);
    let error = remote(&server).pull(&local.store, &key).unwrap_err();
    let RemoteError::Refused { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source, Refusal::TooLarge(64 << 20));
    assert_eq!(server.ranges(&blob), [None]);
    local.has_nothing();
}

#[test]
fn nobody_there_is_an_error_of_the_service() {
    let url = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/p", listener.local_addr().unwrap())
    };
    let remote = Remote::open(&url, &BTreeMap::new(), ours(), impatient()).unwrap();
    let error = remote.pull(&Local::new().store, &Digest::of(b"k")).unwrap_err();
    assert!(matches!(error, RemoteError::Service { .. }), "{error:?}");
}

//! What a remote cache promises, told to a folder, to memory and, when asked, to a real service.

mod contract;
mod flaky;
mod server;
mod transfer;

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, LazyLock},
    time::Duration,
};

use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory, path::Path};
use tempfile::TempDir;

use super::{place::Place, *};
use crate::store::{Lookup, Made, Record, Store, record};

/// The key whose records the tests trust, and another one.
static OURS: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::generate().unwrap());
static THEIRS: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::generate().unwrap());

/// A local cache in a folder of its own.
struct Local {
    dir: TempDir,
    store: Store,
}

impl Local {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache")).unwrap();
        Self { dir, store }
    }

    /// Records what a key produced: files by port and name.
    fn make(&self, key: &Digest, files: &[(&str, &str, &[u8])]) -> Record {
        let Lookup::Miss(slot) = self.store.lookup(key).unwrap() else { panic!("{key} is there") };
        let mut ports: Vec<&str> = files.iter().map(|(port, ..)| *port).collect();
        ports.dedup();
        let work = slot.workdir(&ports).unwrap();
        for (port, name, bytes) in files {
            let path = work.out.join(port).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let made = Made {
            kind: "test".into(),
            key: serde_json::json!({ "key": key.to_string() }),
            ports: ports.into_iter().map(str::to_owned).collect(),
            peak_memory: None,
            seconds: 1.5,
            why: vec!["never ran".into()],
        };
        slot.record(made, &work).unwrap()
    }

    /// Nothing of a key may be here: no record, no new blob, no file outside, nothing left in the private folder.
    fn has_nothing(&self) {
        for kind in ["blob", "act", "bad"] {
            let walk = walkdir::WalkDir::new(self.store.root().join(kind)).into_iter();
            let files: Vec<_> = walk.map(Result::unwrap).filter(|e| !e.file_type().is_dir()).collect();
            assert!(files.is_empty(), "{files:?}");
        }
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 1, "a file outside");
        assert_eq!(fs::read_dir(self.store.lease().tmp()).unwrap().count(), 0, "scratch was left");
    }

    /// The bytes of a file of a record.
    fn read(&self, record: &Record, port: &str, name: &str) -> Vec<u8> {
        fs::read(&self.store.files(&record.outputs[port]).unwrap()[name]).unwrap()
    }
}

/// Signs as we do, trusts us.
fn ours() -> Access {
    Access { trust: vec![OURS.public()], sign_with: Some(OURS.clone()), ..Access::default() }
}

/// Impatient, and with the smallest parts that services take.
fn tuning() -> Tuning {
    Tuning {
        stall: Duration::from_secs(20),
        pause: Duration::from_millis(20),
        parallel: 4,
        part: 5 << 20,
        ..Tuning::default()
    }
}

impl Remote {
    fn object(&self, kind: &str, digest: &Digest) -> Path {
        self.link.place.sharded(kind, digest)
    }

    fn write(&self, object: &Path, bytes: impl Into<bytes::Bytes>) {
        self.runtime.block_on(self.link.place.store.put(object, bytes.into().into())).unwrap();
    }

    fn remove(&self, object: &Path) {
        self.runtime.block_on(self.link.place.store.delete(object)).unwrap();
    }

    fn read(&self, object: &Path) -> Option<Vec<u8>> {
        self.runtime.block_on(fetch::small(&self.link, object, 1 << 30)).unwrap()
    }

    /// All objects by their names.
    fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let list = self.link.place.store.list(Some(&self.link.place.prefix));
        let metas: Vec<_> = self.runtime.block_on(list.try_collect()).unwrap();
        metas.iter().map(|meta| (meta.location.to_string(), self.read(&meta.location).unwrap())).collect()
    }

    /// Puts a record that nobody made under a key, signed by `signer`.
    fn forge(&self, key: &Digest, record: &Record, signer: Option<&SecretKey>) {
        let sealed = record::seal(&[&record::to_json(record), b"null"]);
        let bytes = signer.map_or(sealed.clone(), |signer| signer.sign(&sealed));
        self.write(&self.object("act", key), bytes);
    }
}

/// A remote in memory; clones of `memory` are one.
fn in_memory(memory: &Arc<InMemory>, prefix: &str, access: Access) -> Remote {
    let place = Place {
        store: memory.clone(),
        parts: Some(memory.clone()),
        prefix: Path::from(prefix),
        writable: true,
    };
    Remote::at("memory", place, access, tuning()).unwrap()
}

#[test]
fn a_folder_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    contract::all(&|prefix, access| {
        Remote::open(&format!("{url}/{prefix}"), &BTreeMap::new(), access, tuning()).unwrap()
    });
}

#[test]
fn memory_keeps_the_contract() {
    let memory = Arc::new(InMemory::new());
    contract::all(&|prefix, access| in_memory(&memory, prefix, access));
}

/// `tests/remote/run.sh` starts the services and calls this.
#[test]
#[ignore = "needs a service: MLA_RUN_TEST_REMOTE=s3://bucket/prefix, and AWS_* for its endpoint and credentials"]
fn a_service_keeps_the_contract() {
    let options: BTreeMap<String, String> = std::env::vars().collect();
    let url = &options["MLA_RUN_TEST_REMOTE"];
    contract::all(&|prefix, access| {
        Remote::open(&format!("{url}/{prefix}"), &options, access, tuning()).unwrap()
    });
}

#[test]
fn addresses() {
    let open = |url: &str| Remote::open(url, &BTreeMap::new(), ours(), tuning());
    for (url, why) in [
        ("bucket/prefix", "it has no `://`"),
        ("s3:///prefix", "it names no bucket"),
        ("file://folder/x", "a folder needs three slashes"),
        ("s3://bucket/a?b=c", "it must not have a `?` or a `#`"),
        ("ftp://host/x", "its scheme is unknown"),
        ("s3://bucket/a//b", "empty"),
    ] {
        let error = open(url).err().unwrap();
        assert!(error.is_usage(), "{url}");
        let text = error.to_string();
        assert!(text.contains(why) && text.contains("write s3://BUCKET"), "{url}: {text}");
    }
    for (url, prefix) in [
        ("s3://bucket", ""),
        ("s3://bucket/", ""),
        ("s3://bucket/a/b%20c", "a/b c"),
        ("http://localhost:1/p", "p"),
        ("file:///a/b", "a/b"),
    ] {
        assert_eq!(open(url).unwrap().link.place.prefix.to_string(), prefix, "{url}");
    }
}

#[test]
fn settings_that_do_not_fit_are_told() {
    let options = BTreeMap::from([
        ("AWS_PAGER".to_owned(), "less".to_owned()),
        ("AWS_CONDITIONAL_PUT".to_owned(), "nonsense".to_owned()),
    ]);
    let error = Remote::open("s3://bucket/p", &options, ours(), tuning()).err().unwrap();
    assert!(error.is_usage());
    assert!(error.to_string().contains("AWS_*"), "{error}");
}

#[test]
fn nothing_is_pushed_where_that_is_not_allowed() {
    let local = Local::new();
    let record = local.make(&Digest::of(b"k"), &[("out", "a", b"1")]);
    let push = |url: &str, access: Access| {
        let remote = Remote::open(url, &BTreeMap::new(), access, tuning()).unwrap();
        let error = remote.push(&local.store, &record).unwrap_err();
        assert!(matches!(error, RemoteError::ReadOnly { .. }), "{error:?}");
        error.to_string()
    };
    let dir = tempfile::tempdir().unwrap();
    let folder = format!("file://{}/r", dir.path().display());
    assert!(push(&folder, Access { read_only: true, ..ours() }).contains("`read-only = true` is set"));
    assert!(push(&folder, Access { sign_with: None, ..ours() }).contains("mla-run cache key new FILE"));
    assert!(push("http://localhost:1/p", ours()).contains("plain HTTP"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

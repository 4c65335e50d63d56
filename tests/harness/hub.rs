//! A small Hugging Face hub on this machine: repositories with commits, large files behind a redirect, lists in pages, and faults on
//! demand. Knows the protocol and nothing of the program.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

/// What a file of a commit holds, and whether git has a pointer in its place.
type Commit = BTreeMap<String, (Vec<u8>, bool)>;

#[derive(Default)]
struct State {
    /// `models/owner/name` → commits, the last of which is `main`.
    repos: BTreeMap<String, Vec<(String, Commit)>>,
    /// Repositories that ask for this token.
    gated: BTreeMap<String, String>,
    /// Method and path of every request.
    requests: Vec<String>,
    /// What goes wrong with the next requests whose path ends so, and how often.
    faults: Vec<(String, Fault, usize)>,
}

/// What goes wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The service is not there.
    Status500,
    /// Half of the bytes come, and the connection ends.
    Half,
    /// A byte is another one.
    Spoilt,
    /// The bytes come very slowly.
    Slow,
    /// No byte comes for a while.
    Hangs,
}

/// A running hub.
#[derive(Clone)]
pub(crate) struct HubServer {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, state: Arc::default() };
        let shared = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let server = shared.clone();
                // Whoever hangs up early ends his own thread only.
                std::thread::spawn(move || drop(server.serve(stream)));
            }
        });
        server
    }

    /// Makes a commit of `models/owner/name`; of files with more than 1000 bytes git has pointers. Returns its id.
    pub(crate) fn commit(&self, repo: &str, files: &[(&str, &[u8])]) -> String {
        let files: Commit = files
            .iter()
            .map(|(path, bytes)| ((*path).to_owned(), (bytes.to_vec(), bytes.len() > 1_000)))
            .collect();
        let mut state = self.state.lock().unwrap();
        let commits = state.repos.entry(repo.to_owned()).or_default();
        let text = format!("{repo} {} {files:?}", commits.len());
        let id = hex(&Sha1::digest(text.as_bytes()));
        commits.push((id.clone(), files));
        id
    }

    pub(crate) fn gate(&self, repo: &str, token: &str) {
        self.state.lock().unwrap().gated.insert(repo.to_owned(), token.to_owned());
    }

    pub(crate) fn fail(&self, path_ends: &str, fault: Fault, times: usize) {
        self.state.lock().unwrap().faults.push((path_ends.to_owned(), fault, times));
    }

    /// The requests since the last time, such as `GET /api/models/a/b/revision/main`.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let mut token = None;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("authorization")
            {
                token = value.trim().strip_prefix("Bearer ").map(str::to_owned);
            }
        }
        let mut words = first.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.replace("%2F", "/");
        let (answer, fault) = {
            let mut state = self.state.lock().unwrap();
            state.requests.push(format!("{method} {path}"));
            let fault = state.fault(method, &path);
            (state.answer(&self.url, (&path, query), token.as_deref()), fault)
        };
        answer.send(&mut stream, method == "HEAD", fault)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        drop(stream.read(&mut [0; 64]));
        Ok(())
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn error(status: u16, code: &str) -> Self {
        let headers = vec![("X-Error-Code", code.to_owned()), ("X-Error-Message", code.to_owned())];
        Self { status, headers, body: json!({ "error": code }).to_string().into_bytes() }
    }

    fn json(value: &serde_json::Value) -> Self {
        let headers = vec![("Content-Type", "application/json".to_owned())];
        Self { status: 200, headers, body: value.to_string().into_bytes() }
    }

    fn send(mut self, stream: &mut TcpStream, head: bool, fault: Option<Fault>) -> std::io::Result<()> {
        if fault == Some(Fault::Status500) {
            self = Self::error(500, "Internal");
        }
        if fault == Some(Fault::Spoilt) {
            self.body[0] ^= 1;
        }
        let mut text = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", self.status);
        write!(text, "Content-Length: {}\r\n", self.body.len()).unwrap();
        for (name, value) in &self.headers {
            write!(text, "{name}: {value}\r\n").unwrap();
        }
        stream.write_all((text + "\r\n").as_bytes())?;
        if fault == Some(Fault::Hangs) {
            std::thread::sleep(Duration::from_secs(20));
        }
        match fault {
            _ if head => Ok(()),
            Some(Fault::Half) => stream.write_all(&self.body[..self.body.len() / 2]),
            Some(Fault::Slow) => self.body.chunks(100).try_for_each(|part| {
                std::thread::sleep(Duration::from_millis(50));
                stream.write_all(part)
            }),
            _ => stream.write_all(&self.body),
        }
    }
}

impl State {
    fn fault(&mut self, method: &str, path: &str) -> Option<Fault> {
        let meant = |(ends, _, times): &&mut (String, Fault, usize)| path.ends_with(&**ends) && *times > 0;
        let (_, fault, times) = self.faults.iter_mut().find(meant)?;
        // The bytes come with GET; a service that is not there does not answer HEAD either.
        if method == "HEAD" && *fault != Fault::Status500 {
            return None;
        }
        *times -= 1;
        Some(*fault)
    }

    fn answer(&self, url: &str, (path, query): (&str, &str), token: Option<&str>) -> Answer {
        if let Some(sha) = path.strip_prefix("/cdn/") {
            let files = self.repos.values().flatten().flat_map(|(_, files)| files.values());
            let found = files.map(|(bytes, _)| bytes).find(|bytes| hex(&Sha256::digest(bytes)) == sha);
            return match found {
                Some(bytes) => Answer { status: 200, headers: vec![], body: bytes.clone() },
                None => Answer::error(404, "EntryNotFound"),
            };
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (repo, rest) = match parts[..] {
            ["api", kind, owner, name, ref rest @ ..] => (format!("{kind}/{owner}/{name}"), rest.to_vec()),
            ["datasets", owner, name, ref rest @ ..] => (format!("datasets/{owner}/{name}"), rest.to_vec()),
            [owner, name, ref rest @ ..] => (format!("models/{owner}/{name}"), rest.to_vec()),
            _ => return Answer::error(404, "RepoNotFound"),
        };
        if self.gated.get(&repo).is_some_and(|wanted| token != Some(wanted)) {
            return Answer::error(401, "GatedRepo");
        }
        let Some(commits) = self.repos.get(&repo) else { return Answer::error(404, "RepoNotFound") };
        let at = |revision: &str| match revision {
            "main" => commits.last(),
            id => commits.iter().find(|(commit, _)| commit == id),
        };
        match rest[..] {
            ["revision", revision] => match at(revision) {
                Some((commit, _)) => Answer::json(&json!({ "id": repo, "sha": commit })),
                None => Answer::error(404, "RevisionNotFound"),
            },
            ["tree", revision, ref folder @ ..] => match at(revision) {
                Some((_, files)) => page(files, &folder.join("/"), &format!("{url}{path}"), query),
                None => Answer::error(404, "RevisionNotFound"),
            },
            ["resolve", revision, ref file @ ..] => match at(revision) {
                Some((commit, files)) => resolve(url, commit, files.get(&file.join("/"))),
                None => Answer::error(404, "RevisionNotFound"),
            },
            _ => Answer::error(404, "RepoNotFound"),
        }
    }
}

/// Two entries of a list, and where the next two are.
fn page(files: &Commit, folder: &str, url: &str, query: &str) -> Answer {
    let recursive = query.contains("recursive=true");
    let from =
        query.split('&').find_map(|word| word.strip_prefix("cursor=")?.parse::<usize>().ok()).unwrap_or(0);
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let mut entries = BTreeMap::new();
    for (path, (bytes, lfs)) in files {
        let Some(below) = path.strip_prefix(&prefix) else { continue };
        if let Some((name, _)) = below.split_once('/').filter(|_| !recursive) {
            let path = format!("{prefix}{name}");
            entries.insert(path.clone(), json!({ "type": "directory", "oid": "0".repeat(40), "path": path }));
            continue;
        }
        let sha = hex(&Sha256::digest(bytes));
        let mut entry = json!({ "type": "file", "path": path, "size": bytes.len(), "oid": oid(bytes, *lfs) });
        if *lfs {
            entry["lfs"] = json!({ "oid": sha, "size": bytes.len(), "pointerSize": 134 });
        }
        entries.insert(path.clone(), entry);
    }
    let shown: Vec<_> = entries.values().skip(from).take(2).cloned().collect();
    let mut answer = Answer::json(&json!(shown));
    if from + 2 < entries.len() {
        let recursive = if recursive { "recursive=true&" } else { "" };
        answer.headers.push(("Link", format!("<{url}?{recursive}cursor={}>; rel=\"next\"", from + 2)));
    }
    answer
}

fn resolve(url: &str, commit: &str, file: Option<&(Vec<u8>, bool)>) -> Answer {
    let commit = ("X-Repo-Commit", commit.to_owned());
    let Some((bytes, lfs)) = file else {
        let mut answer = Answer::error(404, "EntryNotFound");
        answer.headers.push(commit);
        return answer;
    };
    if !lfs {
        let headers = vec![commit, ("ETag", format!("\"{}\"", oid(bytes, false)))];
        return Answer { status: 200, headers, body: bytes.clone() };
    }
    let sha = hex(&Sha256::digest(bytes));
    let headers = vec![
        commit,
        ("X-Linked-Etag", format!("\"{sha}\"")),
        ("X-Linked-Size", bytes.len().to_string()),
        ("Location", format!("{url}/cdn/{sha}")),
    ];
    Answer { status: 302, headers, body: Vec::new() }
}

/// The object id that git has for a file or for its pointer.
pub(crate) fn oid(bytes: &[u8], lfs: bool) -> String {
    let sha = hex(&Sha256::digest(bytes));
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {}\n", bytes.len());
    let content = if lfs { pointer.as_bytes() } else { bytes };
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    hash.update(content);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

//! A tiny HTTP server that misbehaves on request: it drips, stalls, cuts off, and takes no notice of ranges. Knows no cache.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// How one request is answered.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    /// So many bytes at a time, with a pause before each.
    Drip(usize, Duration),
    /// After so many bytes nothing more comes, and the connection stays.
    Stall(usize),
    /// After so many bytes the connection ends.
    Cut(usize),
    /// The whole object, whatever range was asked for.
    NoRange,
    /// This status and nothing else.
    Status(u16),
    /// A size that is not true, and then the bytes.
    Claim(u64),
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    acts: BTreeMap<String, VecDeque<Act>>,
    etag: Option<String>,
    log: Vec<(String, Option<String>)>,
}

/// The server; its threads end with the test.
pub(super) struct Server {
    pub(super) url: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(super) fn new(objects: BTreeMap<String, Vec<u8>>, etag: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = State { objects, etag: etag.map(str::to_owned), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = shared.clone();
                thread::spawn(move || {
                    let Ok(stream) = stream else { return };
                    while answer(&stream, &shared).is_some() {}
                });
            }
        });
        Self { url, state }
    }

    /// How the next requests for objects whose name ends so are answered; later ones as they should be.
    pub(super) fn plan(&self, name: &str, acts: &[Act]) {
        let mut state = self.state.lock().unwrap();
        let name = state.objects.keys().find(|object| object.ends_with(name)).unwrap().clone();
        state.acts.insert(name, acts.iter().copied().collect());
    }

    /// The ranges of the requests for an object.
    pub(super) fn ranges(&self, name: &str) -> Vec<Option<String>> {
        let state = self.state.lock().unwrap();
        state.log.iter().filter(|(object, _)| object.ends_with(name)).map(|(_, r)| r.clone()).collect()
    }
}

/// Answers one request; `None` when the connection is done.
fn answer(mut stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let name = lines.next()?.ok()?.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    let mut range = None;
    for line in lines {
        let line = line.ok()?.to_lowercase();
        if line.is_empty() {
            break;
        }
        range = range.or(line.strip_prefix("range: bytes=").map(str::to_owned));
    }
    let (object, act, etag) = {
        let mut state = state.lock().unwrap();
        state.log.push((name.clone(), range.clone()));
        let act = state.acts.get_mut(&name).and_then(VecDeque::pop_front);
        (state.objects.get(&name).cloned(), act, state.etag.clone())
    };
    let Some(object) = object else {
        return stream.write_all(b"HTTP/1.1 404 Gone\r\ncontent-length: 0\r\n\r\n").ok();
    };
    if let Some(Act::Status(status)) = act {
        return stream
            .write_all(format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n").as_bytes())
            .ok();
    }
    let ranged = range.filter(|_| !matches!(act, Some(Act::NoRange)));
    let first = |range: &String| range.split('-').next().unwrap().parse::<usize>().unwrap();
    let start = ranged.as_ref().map_or(0, first);
    let body = &object[start..];
    let length = if let Some(Act::Claim(length)) = act { length } else { body.len() as u64 };
    let (end, all) = (object.len() - 1, object.len());
    let mut head = if ranged.is_none() {
        "HTTP/1.1 200 OK\r\n".to_owned()
    } else {
        format!("HTTP/1.1 206 Part\r\ncontent-range: bytes {start}-{end}/{all}\r\n")
    };
    head += &etag.map_or(String::new(), |etag| format!("etag: \"{etag}\"\r\n"));
    stream.write_all(format!("{head}content-length: {length}\r\n\r\n").as_bytes()).ok()?;
    send(stream, body, act)
}

fn send(mut stream: &TcpStream, body: &[u8], act: Option<Act>) -> Option<()> {
    match act {
        Some(Act::Drip(bytes, pause)) => {
            for piece in body.chunks(bytes) {
                thread::sleep(pause);
                stream.write_all(piece).ok()?;
            }
            Some(())
        }
        Some(Act::Stall(bytes)) => {
            stream.write_all(&body[..bytes]).ok()?;
            thread::sleep(Duration::from_mins(1));
            None
        }
        Some(Act::Cut(bytes)) => {
            stream.write_all(&body[..bytes]).ok()?;
            None
        }
        _ => stream.write_all(body).ok(),
    }
}

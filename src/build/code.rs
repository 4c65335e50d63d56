//! The code that can change a stage's bytes: the source files that its module reaches, and the locked crates that they use.
//!
//! Works on tokens, so comments, documentation, layout and tests do not count. A file reaches what its paths name
//! (`crate::math::grid`, `super::Stage`, a child module, a crate), the private modules it declares, and the files it includes.
//! That is enough as long as every `impl` stands with its type or its trait; `tests/code.rs` holds that. The engine and the store
//! carry bytes and make none, so they are not followed. Knows nothing of what a stage does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::lock::Lock;

/// The folders of `src` whose code can reach a stage's bytes.
const FOLLOWED: &[&str] = &["artifact", "device", "kernel", "math", "model", "stage"];

/// The name of each file or crate and what identifies its version.
pub(crate) type Code = BTreeMap<String, String>;

type Module = Vec<String>;

/// The modules of the crate.
pub(crate) struct Sources {
    modules: BTreeMap<Module, File>,
    root: PathBuf,
}

/// A source file, as far as its code matters.
struct File {
    path: PathBuf,
    tokens: Vec<TokenTree>,
}

impl Sources {
    /// Reads the followed modules below `root/src`.
    pub(crate) fn read(root: &Path) -> Self {
        let mut modules = BTreeMap::new();
        for name in FOLLOWED {
            for path in [root.join("src").join(name), root.join("src").join(format!("{name}.rs"))] {
                collect(&path, &mut vec![(*name).to_owned()], &mut modules);
            }
        }
        Self { modules, root: root.to_owned() }
    }

    /// The stages: each module directly in `stage`.
    pub(crate) fn stages(&self) -> impl Iterator<Item = &str> {
        let of_stage = |module: &&Module| module.len() == 2 && module[0] == "stage";
        self.modules.keys().filter(of_stage).map(|module| module[1].as_str())
    }

    /// All that a module reaches.
    pub(crate) fn closure(&self, module: &[&str], lock: &Lock) -> Code {
        let mut open: Vec<Module> = vec![module.iter().map(|&part| part.to_owned()).collect()];
        let (mut seen, mut crates, mut code) = (BTreeSet::new(), BTreeSet::new(), Code::new());
        while let Some(module) = open.pop() {
            let Some(file) = self.modules.get(&module).filter(|_| seen.insert(module.clone())) else {
                continue;
            };
            code.insert(self.name(&file.path), digest(text(&file.tokens).as_bytes()));
            for path in paths(&file.tokens) {
                match self.resolve(&module, &path) {
                    Some(found) => open.push(found),
                    None => crates.extend(lock.known(&path[0])),
                }
            }
            open.extend(private_modules(&file.tokens).map(|child| [&module[..], &[child]].concat()));
            for (word, value) in includes(file) {
                code.insert(word, value);
            }
            if text(&file.tokens).contains("\"CARGO_PKG_VERSION\"") {
                code.insert("crate mla-run".into(), env!("CARGO_PKG_VERSION").into());
            }
        }
        code.extend(lock.versions(&crates));
        code
    }

    /// The module that a path names, seen from another one; `None` for other crates.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<Module> {
        let mut full: Module = match path[0].as_str() {
            "crate" => Vec::new(),
            "self" => from.clone(),
            "super" => from[..from.len() - 1].to_vec(),
            child if self.modules.contains_key(&[&from[..], &[child.to_owned()]].concat()) => {
                [&from[..], &[child.to_owned()]].concat()
            }
            _ => return None,
        };
        for part in &path[1..] {
            match part.as_str() {
                "super" => drop(full.pop()),
                "self" => {}
                part => full.push(part.to_owned()),
            }
        }
        while !full.is_empty() && !self.modules.contains_key(&full) {
            full.pop();
        }
        Some(full)
    }

    fn name(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().into_owned()
    }
}

/// Reads a module and the modules in its folder.
fn collect(path: &Path, module: &mut Module, modules: &mut BTreeMap<Module, File>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
            if path.is_file() && stem == "mod" {
                collect(&path, module, modules);
            } else {
                module.push(stem);
                collect(&path, module, modules);
                module.pop();
            }
        }
    } else if path.is_file() && path.extension().is_some_and(|ext| ext == "rs") {
        let source = fs::read_to_string(path).expect("a source file");
        let tokens = source.parse::<TokenStream>().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tokens = without_noise(tokens);
        modules.insert(module.clone(), File { path: path.to_owned(), tokens });
    }
}

/// Drops documentation and what is compiled for tests only.
fn without_noise(tokens: TokenStream) -> Vec<TokenTree> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        match attribute(&tokens[at..]) {
            Some((words, length)) if words.starts_with("doc ") => at += length,
            Some((words, length)) if words == "cfg ( test )" => at += length + item(&tokens[at + length..]),
            _ => {
                kept.push(match &tokens[at] {
                    TokenTree::Group(group) => {
                        let inner = without_noise(group.stream()).into_iter().collect();
                        proc_macro2::Group::new(group.delimiter(), inner).into()
                    }
                    other => other.clone(),
                });
                at += 1;
            }
        }
    }
    kept
}

/// The words of an attribute that stands here, and how many tokens it takes.
fn attribute(tokens: &[TokenTree]) -> Option<(String, usize)> {
    let is = |at: usize, c: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == c);
    let at = 1 + usize::from(is(1, '!'));
    match tokens.get(at) {
        Some(TokenTree::Group(group)) if is(0, '#') && group.delimiter() == Delimiter::Bracket => {
            Some((text(&group.stream().into_iter().collect::<Vec<_>>()), at + 1))
        }
        _ => None,
    }
}

/// How many tokens an item takes: to its block or its semicolon.
fn item(tokens: &[TokenTree]) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    };
    tokens.iter().position(ends).map_or(tokens.len(), |end| end + 1)
}

/// The tokens as one line, `mod name;` left out: what a file declares counts only where it is reached.
fn text(tokens: &[TokenTree]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < tokens.len() {
        if let Some((_, _, length)) = module(&tokens[at..]) {
            at += length;
            continue;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        match &tokens[at] {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                let inner = text(&group.stream().into_iter().collect::<Vec<_>>());
                out.extend([open, " ", &inner, " ", close]);
            }
            token => out.push_str(&token.to_string()),
        }
        at += 1;
    }
    out
}

/// `mod name;` that stands here: whether it is private, its name, and its length.
fn module(tokens: &[TokenTree]) -> Option<(bool, String, usize)> {
    let word = |at: usize| match tokens.get(at) {
        Some(TokenTree::Ident(ident)) => ident.to_string(),
        Some(TokenTree::Punct(punct)) => punct.as_char().to_string(),
        _ => String::new(),
    };
    let public = usize::from(word(0) == "pub");
    let scope = usize::from(public == 1 && matches!(tokens.get(1), Some(TokenTree::Group(_))));
    let at = public + scope;
    (word(at) == "mod" && word(at + 2) == ";").then(|| (public == 0, word(at + 1), at + 3))
}

fn private_modules(tokens: &[TokenTree]) -> impl Iterator<Item = String> {
    let public = |at: usize| {
        let is_pub = |token: &TokenTree| matches!(token, TokenTree::Ident(ident) if ident == "pub");
        at > 0 && (is_pub(&tokens[at - 1]) || at > 1 && is_pub(&tokens[at - 2]))
    };
    (0..tokens.len()).filter_map(move |at| {
        let (private, name, _) = module(&tokens[at..])?;
        (private && !public(at)).then_some(name)
    })
}

/// Every path in the tokens, `use` trees taken apart.
fn paths(tokens: &[TokenTree]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    gather(tokens, &[], &mut found);
    found
}

fn gather(tokens: &[TokenTree], prefix: &[String], found: &mut Vec<Vec<String>>) {
    let punct = |at: usize, c: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == c);
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(first) if at == 0 || !punct(at - 1, '.') => {
                let mut path = [prefix, &[first.to_string()]].concat();
                at += 1;
                while punct(at, ':') && punct(at + 1, ':') {
                    match tokens.get(at + 2) {
                        Some(TokenTree::Ident(next)) => path.push(next.to_string()),
                        Some(TokenTree::Group(group)) => {
                            gather(&group.stream().into_iter().collect::<Vec<_>>(), &path, found);
                        }
                        _ => break,
                    }
                    at += 3;
                }
                // A word alone is a variable or something that a `use` named already.
                if path.len() > 1 {
                    found.push(path);
                }
            }
            TokenTree::Group(group) => {
                gather(&group.stream().into_iter().collect::<Vec<_>>(), prefix, found);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// The files that a source file includes as text, by name, with their digests.
fn includes(file: &File) -> Vec<(String, String)> {
    let line = text(&file.tokens);
    let mut found = Vec::new();
    for word in ["include_str ! ( \"", "include_bytes ! ( \""] {
        for (start, _) in line.match_indices(word) {
            let name = line[start + word.len()..].split('"').next().unwrap_or_default();
            let path = file.path.with_file_name(name);
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let name = format!("{} of {}", name, file.path.file_name().unwrap_or_default().to_string_lossy());
            found.push((name, digest(&bytes)));
        }
    }
    found
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

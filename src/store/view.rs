//! Views: folders of links that show an artifact's blobs under their own names. They can be deleted at any time.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Store, disk,
    error::{Result, StoreError},
    tree::{Tree, TreeFile},
};

impl Store {
    /// Where an artifact's files can be read under their own names, as a map from name to path.
    pub fn files(&self, tree: &Tree) -> Result<BTreeMap<String, PathBuf>> {
        let home = self.view_home(tree);
        if !tree.files.iter().all(|f| self.is_linked(&home, f)) {
            self.make_view(tree, &home)?;
        }
        Ok(tree.files.iter().map(|f| (f.name.clone(), home.join(&f.name))).collect())
    }

    /// What to show to a person: the file of a single-file artifact, else the folder.
    pub fn view(&self, tree: &Tree) -> Result<PathBuf> {
        let home = self.view_home(tree);
        let (shown, right) = match &tree.files[..] {
            [file] => (home.join(&file.name), self.is_linked(&home, file)),
            _ => (home.clone(), fs::symlink_metadata(&home).is_ok()),
        };
        if !right {
            self.make_view(tree, &home)?;
        }
        Ok(shown)
    }

    fn view_home(&self, tree: &Tree) -> PathBuf {
        self.root().join("view").join(tree.digest.to_string())
    }

    fn is_linked(&self, home: &Path, file: &TreeFile) -> bool {
        fs::read_link(home.join(&file.name)).is_ok_and(|target| target == self.link_target(file))
    }

    /// Relative, so that the cache can be moved as a whole.
    fn link_target(&self, file: &TreeFile) -> PathBuf {
        let blob = self.blob_path(&file.blob);
        let below_root = blob.strip_prefix(self.root()).unwrap_or(&blob);
        let up = "../".repeat(2 + file.name.matches('/').count());
        Path::new(&up).join(below_root)
    }

    fn make_view(&self, tree: &Tree, home: &Path) -> Result<()> {
        let staged = self.lease().fresh("view");
        for file in &tree.files {
            let link = staged.join(&file.name);
            disk::make_dir(link.parent().unwrap_or(&staged))?;
            std::os::unix::fs::symlink(self.link_target(file), &link)
                .map_err(StoreError::io("link", &link))?;
        }
        disk::make_dir(&self.root().join("view"))?;
        if fs::rename(&staged, home).is_ok() {
            return Ok(());
        }
        if tree.files.iter().all(|file| self.is_linked(home, file)) {
            return Ok(()); // another process made it meanwhile, and somebody may be reading it
        }
        // A spoiled view: its name is free or right afterwards.
        let aside = self.lease().fresh("view");
        drop(fs::rename(home, &aside));
        match fs::rename(&staged, home) {
            Err(e)
                if !matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) =>
            {
                Err(StoreError::io("make the view", home)(e))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(store: &Store, files: &[(&str, &str)]) -> Tree {
        let dir = store.lease().fresh("put");
        for (name, text) in files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Tree::new(store.put_dir(&dir).unwrap())
    }

    #[test]
    fn files_are_shown_under_their_names_even_after_moving_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("a")).unwrap();
        let many = tree(&store, &[("x.json", "{}"), ("deep/er/y", "why")]);
        let one = tree(&store, &[("only.txt", "1")]);
        assert_eq!(fs::read_to_string(&store.files(&many).unwrap()["deep/er/y"]).unwrap(), "why");
        assert!(store.view(&one).unwrap().ends_with("only.txt"));
        assert!(store.view(&many).unwrap().is_dir());
        drop(store);
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        let store = Store::open(&dir.path().join("b")).unwrap();
        assert_eq!(fs::read_to_string(store.view(&one).unwrap()).unwrap(), "1");
    }

    #[test]
    fn views_that_several_make_at_once_are_right_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let stores: Vec<Store> = (0..4).map(|_| Store::open(dir.path()).unwrap()).collect();
        let tree = tree(&stores[0], &[("a/b/c", "1"), ("a/d", "2"), ("e", "3")]);
        std::thread::scope(|scope| {
            for store in &stores {
                scope.spawn(|| {
                    for (name, text) in [("a/b/c", "1"), ("a/d", "2"), ("e", "3")] {
                        assert_eq!(fs::read_to_string(&store.files(&tree).unwrap()[name]).unwrap(), text);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path().join("view")).unwrap().count(), 1);
    }

    #[test]
    fn spoiled_views_are_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let tree = tree(&store, &[("a", "1"), ("b", "2")]);
        let home = store.view(&tree).unwrap();
        let spoil: [fn(&Path); 3] = [
            |home| fs::remove_dir_all(home).unwrap(),
            |home| fs::remove_file(home.join("b")).unwrap(),
            |home| {
                fs::remove_file(home.join("b")).unwrap();
                fs::write(home.join("b"), "forged").unwrap();
            },
        ];
        for spoil in spoil {
            spoil(&home);
            let files = store.files(&tree).unwrap();
            assert_eq!(fs::read_to_string(&files["b"]).unwrap(), "2");
        }
    }

    #[test]
    fn what_is_shown_of_a_single_file_is_that_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let tree = tree(&store, &[("a", "1")]);
        let shown = store.view(&tree).unwrap();
        fs::remove_file(&shown).unwrap();
        fs::write(&shown, "forged").unwrap();
        assert_eq!(fs::read_to_string(store.view(&tree).unwrap()).unwrap(), "1");
    }
}

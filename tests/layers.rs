//! Checks the module structure: imports between the modules of the program go downwards only, in the order that
//! `src/lib.rs` lists, and no modules of one crate import each other in a circle. Between crates the compiler checks
//! the same.
//!
//! Circles are checked among neighbours: modules with the same parent, each with everything below it. A parent and its
//! own children may import each other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemUse, Macro, UseTree, Visibility};

/// A path as written, or the path of a module from the crate's root.
type Segments = Vec<String>;

/// Modules of a crate by their paths.
struct Crate(BTreeMap<Segments, Module>);

/// References of one file.
#[derive(Default)]
struct Module {
    /// Paths to other modules and to their items, as written.
    references: BTreeSet<Segments>,
    /// Names that the file imports by `use`, with the paths that they stand for.
    names: BTreeMap<String, Segments>,
}

#[test]
fn imports_between_the_layers_of_the_program_go_downwards() {
    let root = repository();
    let map = std::fs::read_to_string(root.join("src/lib.rs")).unwrap();
    // Each line `//! N. [`name`], [`name`]: …` is a layer.
    let layers: Vec<Segments> = map
        .lines()
        .filter_map(|line| line.strip_prefix("//! "))
        .filter(|line| line.starts_with(|first: char| first.is_ascii_digit()))
        .map(|line| {
            let names = line.split(':').next().unwrap_or_default().split('`').skip(1).step_by(2);
            names.map(str::to_owned).collect()
        })
        .collect();
    let rank = |name: &str| layers.iter().position(|layer| layer.iter().any(|other| other == name));
    let program = Crate::read(&root.join("src"));
    let mut faults = Vec::new();
    for module in program.0.keys().filter(|module| !module.is_empty() && module[0] != "main") {
        let Some(own) = rank(&module[0]) else {
            faults.push(format!("{} is in no layer of src/lib.rs", module[0]));
            continue;
        };
        for target in program.targets(module).iter().filter(|target| !target.is_empty() && target[0] != module[0]) {
            match rank(&target[0]) {
                Some(other) if other > own => {}
                Some(_) => faults.push(format!("{} imports {}", module.join("::"), target.join("::"))),
                None => faults.push(format!("{} is in no layer of src/lib.rs", target[0])),
            }
        }
    }
    assert!(layers.len() > 5, "the list of layers in src/lib.rs is not found");
    assert!(faults.is_empty(), "imports that go upwards:\n{}", faults.join("\n"));
}

#[test]
fn no_neighbours_import_each_other_in_a_circle() {
    let root = repository();
    let mut sources = vec![root.join("src")];
    for member in std::fs::read_dir(root.join("crates")).unwrap() {
        sources.push(member.unwrap().path().join("src"));
    }
    let mut faults = Vec::new();
    for source in sources {
        let name = source.strip_prefix(&root).unwrap().display();
        faults.extend(Crate::read(&source).circles().into_iter().map(|circle| format!("{name}: {circle}")));
    }
    assert!(faults.is_empty(), "modules import each other in circles:\n{}", faults.join("\n"));
}

/// The second engine has a workspace and a lock file of its own: none of its crates reaches the default build, and no version
/// of Attune's crates changes with it.
#[test]
fn the_default_build_knows_nothing_of_the_second_engine() {
    let packages = |lock: PathBuf| -> BTreeSet<String> {
        let text = std::fs::read_to_string(lock).unwrap();
        text.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')).map(str::to_owned).collect()
    };
    let own = packages(repository().join("Cargo.lock"));
    let second = packages(repository().join("engines/mistralrs/Cargo.lock"));
    for package in ["mistralrs", "mistralrs-core", "attune-mistralrs"] {
        assert!(second.contains(package), "{package} is not in the lock file of the second engine");
        assert!(!own.contains(package), "{package} has come into the lock file of the default build");
    }
    let manifest = std::fs::read_to_string(repository().join("engines/mistralrs/Cargo.toml")).unwrap();
    assert!(manifest.contains("[workspace]"), "the second engine has no workspace of its own");
    let default = std::fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    assert!(
        !default.contains("engines") && !default.contains("\nmistralrs ="),
        "the default build names the second engine"
    );
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Crate {
    fn read(source: &Path) -> Self {
        let mut modules = BTreeMap::new();
        let mut folders = vec![source.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let is_test = |stem: &str| stem == "tests" || stem.ends_with("_tests");
                let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
                if path.extension().is_none_or(|extension| extension != "rs") || is_test(&stem) {
                    continue;
                }
                let folder = folder.strip_prefix(source).unwrap();
                let mut module: Segments = folder.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
                if !["mod", "lib"].contains(&stem.as_str()) {
                    module.push(stem);
                }
                let file = syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap();
                let mut found = Module::default();
                found.visit_file(&file);
                modules.insert(module, found);
            }
        }
        Self(modules)
    }

    /// Returns the modules that `module` refers to, without itself.
    fn targets(&self, module: &Segments) -> BTreeSet<Segments> {
        let references = self.0[module].references.iter();
        let targets = references.filter_map(|written| self.resolve(module, written, 0));
        targets.filter(|target| target != module).collect()
    }

    /// Returns the module of the path `written` in `module`, followed through the imports of modules; `None` for paths
    /// outside the crate.
    fn resolve(&self, module: &Segments, written: &[String], followed: usize) -> Option<Segments> {
        let rest = |count: usize| written[count..].to_vec();
        let whole: Segments = match written.first()?.as_str() {
            "crate" => rest(1),
            "self" => [module.clone(), rest(1)].concat(),
            "super" => {
                let ups = written.iter().take_while(|segment| *segment == "super").count();
                [module[..module.len().checked_sub(ups)?].to_vec(), rest(ups)].concat()
            }
            child if self.0.contains_key(&[module.clone(), vec![child.to_owned()]].concat()) => {
                [module.clone(), rest(0)].concat()
            }
            _ => return None,
        };
        let length = (0..=whole.len()).rev().find(|length| self.0.contains_key(&whole[..*length]))?;
        let holder = whole[..length].to_vec();
        let next = whole.get(length).and_then(|name| self.0[&holder].names.get(name));
        match next {
            Some(path) if followed < 8 => {
                let further = [path.clone(), whole[length + 1..].to_vec()].concat();
                self.resolve(&holder, &further, followed + 1).or(Some(holder))
            }
            _ => Some(holder),
        }
    }

    /// Returns the circles among neighbours, one line for each.
    fn circles(&self) -> Vec<String> {
        // By parent: edges from neighbour to neighbour, each with an import as an example.
        let mut edges: BTreeMap<Segments, BTreeMap<String, BTreeMap<String, String>>> = BTreeMap::new();
        for module in self.0.keys() {
            for target in self.targets(module) {
                let common = module.iter().zip(&target).take_while(|(one, other)| one == other).count();
                if let (Some(from), Some(to)) = (module.get(common), target.get(common)) {
                    let example = format!("{} -> {}", module.join("::"), target.join("::"));
                    let neighbours = edges.entry(module[..common].to_vec()).or_default();
                    neighbours.entry(from.clone()).or_default().insert(to.clone(), example);
                }
            }
        }
        let mut circles = Vec::new();
        for neighbours in edges.values() {
            for (from, targets) in neighbours {
                for (to, example) in targets {
                    if let Some(back) = way(neighbours, to, from) {
                        circles.push(format!("{example}, but {back}"));
                    }
                }
            }
        }
        circles
    }
}

/// Returns the imports that lead from `from` to `to`, one after the other.
fn way(neighbours: &BTreeMap<String, BTreeMap<String, String>>, from: &str, to: &str) -> Option<String> {
    let mut open = vec![(from.to_owned(), Vec::new())];
    let mut seen = BTreeSet::new();
    while let Some((at, imports)) = open.pop() {
        if at == to {
            return Some(imports.join(", "));
        }
        if seen.insert(at.clone()) {
            for (next, example) in neighbours.get(&at).into_iter().flatten() {
                open.push((next.clone(), [imports.clone(), vec![example.clone()]].concat()));
            }
        }
    }
    None
}

impl<'ast> Visit<'ast> for Module {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Mod(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => &[],
        };
        let is_test = |attribute: &Attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
        };
        if !attributes.iter().any(is_test) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        for (path, name) in leaves(&item.tree) {
            // A re-exported item is not something that the file needs itself.
            if matches!(item.vis, Visibility::Inherited) {
                self.references.insert(path.clone());
            }
            if let Some(name) = name {
                self.names.insert(name, path);
            }
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.references.insert(segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.scan(item.tokens.clone());
        visit::visit_macro(self, item);
    }
}

impl Module {
    /// Notes the paths among the arguments of a macro.
    fn scan(&mut self, tokens: TokenStream) {
        let mut path: Segments = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(word) if path.is_empty() || colons == 2 => {
                    path.push(word.to_string());
                    colons = 0;
                    continue;
                }
                TokenTree::Ident(word) => {
                    self.note(std::mem::replace(&mut path, vec![word.to_string()]));
                    colons = 0;
                    continue;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' && !path.is_empty() && colons < 2 => {
                    colons += 1;
                    continue;
                }
                TokenTree::Group(group) => self.scan(group.stream()),
                _ => {}
            }
            self.note(std::mem::take(&mut path));
            colons = 0;
        }
        self.note(path);
    }

    fn note(&mut self, path: Segments) {
        if path.len() > 1 {
            self.references.insert(path);
        }
    }
}

/// Returns the paths of a `use`, each with the name that it imports; `None` for `*`.
fn leaves(tree: &UseTree) -> Vec<(Segments, Option<String>)> {
    match tree {
        UseTree::Path(path) => {
            let mut all = leaves(&path.tree);
            for (segments, name) in &mut all {
                if segments.len() == 1 && segments[0] == "self" {
                    segments.clear();
                    *name = name.take().map(|name| if name == "self" { path.ident.to_string() } else { name });
                }
                segments.insert(0, path.ident.to_string());
            }
            all
        }
        UseTree::Name(name) => vec![(vec![name.ident.to_string()], Some(name.ident.to_string()))],
        UseTree::Rename(name) => vec![(vec![name.ident.to_string()], Some(name.rename.to_string()))],
        UseTree::Glob(_) => vec![(Vec::new(), None)],
        UseTree::Group(group) => group.items.iter().flat_map(leaves).collect(),
    }
}

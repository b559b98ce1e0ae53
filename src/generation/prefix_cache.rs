//! Beginnings of texts that were read before: their pages are kept, so that a text that begins the same is not read again.
//!
//! Law 7: what the trunk made of a beginning holds for every version, what a tail made of it for that tail's version alone.
//! So a page of the trunk is found by the tokens up to its end, and a page of a tail by those tokens *and* the version; there
//! is no other way to it. Where only the trunk's pages are there, the tail reads the kept hidden states.
//!
//! Kept are full pages alone, as many values as the capacity allows; what was used least recently goes first.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::model::pages::{PAGE, Page};

/// Which page of the trunk: the one before it, and its own tokens. Two texts share it if they agree on all tokens up to its
/// end.
type Key = (Option<u64>, [u32; PAGE]);

/// A page of the trunk, and what tails made of it.
struct Node {
    trunk: Arc<Page>,
    tails: HashMap<u64, Tail>,
    key: Key,
    used: u64,
}

/// A page of one version's tail.
struct Tail {
    page: Arc<Page>,
    used: u64,
}

/// When a page was used last, and which it is. The least goes first: of pages used at the same time the last of a text,
/// whose number is the highest, and a page of a tail before the trunk's.
///
/// Whoever uses a page uses all that come before it, and with a tail's page the trunk's. So the least is never one that
/// another page needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Age {
    used: u64,
    node: Reverse<u64>,
    page: Of,
}

/// Whose page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Tail(u64),
    Trunk,
}

/// A beginning that was found.
#[derive(Default)]
pub(super) struct Found {
    pub trunk: Vec<Arc<Page>>,
    /// Of the version that was asked for; at most as many.
    pub tail: Vec<Arc<Page>>,
}

/// See the module.
pub(super) struct PrefixCache {
    /// Values, of pages of the trunk and of tails together.
    capacity: usize,
    held: usize,
    ids: HashMap<Key, u64>,
    nodes: HashMap<u64, Node>,
    /// Every page that is held.
    ages: BTreeSet<Age>,
    next: u64,
    clock: u64,
}

impl PrefixCache {
    /// An empty cache for at most `capacity` f32 values.
    pub fn new(capacity: usize) -> Self {
        let (ids, nodes, ages) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { capacity, held: 0, ids, nodes, ages, next: 0, clock: 0 }
    }

    /// The longest kept beginning of `ids` that leaves at least one token to be read.
    pub fn find(&mut self, ids: &[u32], version: u64) -> Found {
        self.clock += 1;
        let (mut found, mut parent) = (Found::default(), None);
        let most = ids.len().saturating_sub(1) / PAGE;
        for tokens in full_pages(ids).take(most) {
            let Some(&id) = self.ids.get(&(parent, tokens)) else { break };
            let Some(trunk) = self.use_trunk(id) else { break };
            // A tail's page without those before it would be of no use.
            if found.tail.len() == found.trunk.len() {
                found.tail.extend(self.use_tail(id, version));
            }
            found.trunk.push(trunk);
            parent = Some(id);
        }
        found
    }

    /// Keeps the full pages of a text that was read: page by page the trunk's and that of this version's tail.
    pub fn keep(&mut self, ids: &[u32], version: u64, pages: impl Iterator<Item = (Arc<Page>, Arc<Page>)>) {
        self.clock += 1;
        let mut parent = None;
        for (tokens, (trunk, tail)) in full_pages(ids).zip(pages) {
            let id = self.node((parent, tokens), trunk);
            self.use_trunk(id);
            if self.use_tail(id, version).is_none() {
                self.add_tail(id, version, tail);
            }
            parent = Some(id);
        }
        while self.held > self.capacity
            && let Some(least) = self.ages.pop_first()
        {
            self.forget(least);
        }
        assert!(self.held <= self.capacity, "kept pages never exceed the capacity");
    }

    /// The node of this key, made of `trunk` if there is none.
    fn node(&mut self, key: Key, trunk: Arc<Page>) -> u64 {
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let (id, used) = (self.next, self.clock);
        self.next += 1;
        self.held += trunk.size();
        self.ages.insert(Age { used, node: Reverse(id), page: Of::Trunk });
        self.ids.insert(key, id);
        self.nodes.insert(id, Node { trunk, tails: HashMap::new(), key, used });
        id
    }

    fn add_tail(&mut self, id: u64, version: u64, page: Arc<Page>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let used = self.clock;
        self.held += page.size();
        self.ages.insert(Age { used, node: Reverse(id), page: Of::Tail(version) });
        node.tails.insert(version, Tail { page, used });
    }

    fn use_trunk(&mut self, id: u64) -> Option<Arc<Page>> {
        let node = self.nodes.get_mut(&id)?;
        renew(&mut self.ages, &mut node.used, self.clock, id, Of::Trunk);
        Some(Arc::clone(&node.trunk))
    }

    fn use_tail(&mut self, id: u64, version: u64) -> Option<Arc<Page>> {
        let tail = self.nodes.get_mut(&id)?.tails.get_mut(&version)?;
        renew(&mut self.ages, &mut tail.used, self.clock, id, Of::Tail(version));
        Some(Arc::clone(&tail.page))
    }

    /// Forgets the least used page.
    fn forget(&mut self, Age { node: Reverse(id), page, .. }: Age) {
        let size = match page {
            Of::Tail(version) => {
                let tail = self.nodes.get_mut(&id).and_then(|node| node.tails.remove(&version));
                tail.map_or(0, |tail| tail.page.size())
            }
            Of::Trunk => self.nodes.remove(&id).map_or(0, |node| {
                debug_assert!(node.tails.is_empty(), "a page of a tail goes before the trunk's");
                self.ids.remove(&node.key);
                node.trunk.size()
            }),
        };
        self.held -= size;
    }
}

/// A page is used now.
fn renew(ages: &mut BTreeSet<Age>, used: &mut u64, now: u64, node: u64, page: Of) {
    let age = Age { used: *used, node: Reverse(node), page };
    ages.remove(&age);
    ages.insert(Age { used: now, ..age });
    *used = now;
}

/// The tokens of each full page.
fn full_pages(ids: &[u32]) -> impl Iterator<Item = [u32; PAGE]> {
    ids.chunks_exact(PAGE).filter_map(|tokens| tokens.try_into().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::pages::{PageShape, Pages};

    const TRUNK: PageShape = PageShape { blocks: 3, kv_heads: 1, head_dim: 2, hidden: 2 };
    const TAIL: PageShape = PageShape { blocks: 1, kv_heads: 1, head_dim: 2, hidden: 0 };

    /// Pages of a text of `n` full pages; every page is another allocation.
    fn pages(n: usize) -> Vec<(Arc<Page>, Arc<Page>)> {
        let full = |shape: PageShape| {
            let mut pages = Pages::new(shape);
            let rows = vec![0.0; n * PAGE * 2];
            (0..shape.blocks).for_each(|block| pages.write(block, &rows, &rows));
            pages.grow(n * PAGE);
            pages
        };
        let (trunk, tail) = (full(TRUNK), full(TAIL));
        let page = |pages: &Pages, index| Arc::clone(pages.full(index).unwrap());
        (0..n).map(|index| (page(&trunk, index), page(&tail, index))).collect()
    }

    fn text(pages: usize, seed: u32) -> Vec<u32> {
        (0..(pages * PAGE) as u32).map(|i| i * 7 + seed).collect()
    }

    fn found(cache: &mut PrefixCache, ids: &[u32], version: u64) -> (usize, usize) {
        let found = cache.find(ids, version);
        (found.trunk.len(), found.tail.len())
    }

    fn capacity(trunks: usize, tails: usize) -> usize {
        trunks * TRUNK.values() + tails * TAIL.values()
    }

    #[test]
    fn the_trunk_is_for_all_versions_and_a_tail_for_its_own() {
        let mut cache = PrefixCache::new(capacity(100, 100));
        let (ids, kept) = (text(3, 0), pages(3));
        cache.keep(&ids, 7, kept.iter().cloned());
        let longer = [ids.clone(), vec![1]].concat();
        assert_eq!(found(&mut cache, &longer, 7), (3, 3));
        assert_eq!(found(&mut cache, &longer, 8), (3, 0));
        assert_eq!(found(&mut cache, &ids, 7), (2, 2), "one token is left to be read");
        assert_eq!(found(&mut cache, &ids[..PAGE], 7), (0, 0));
        let mut other = longer.clone();
        other[PAGE + 3] += 1;
        assert_eq!(found(&mut cache, &other, 7), (1, 1), "a page is another after another beginning");
        let same = cache.find(&longer, 7);
        assert!(same.trunk.iter().zip(&kept).all(|(found, (trunk, _))| Arc::ptr_eq(found, trunk)));
        assert!(same.tail.iter().zip(&kept).all(|(found, (_, tail))| Arc::ptr_eq(found, tail)));

        cache.keep(&ids[..2 * PAGE], 8, pages(2).into_iter());
        assert_eq!((found(&mut cache, &longer, 8), found(&mut cache, &longer, 7)), ((3, 2), (3, 3)));
        assert_eq!(cache.held, capacity(3, 5), "the trunk's pages are kept once");
    }

    #[test]
    fn what_was_used_least_recently_goes_first_and_the_capacity_holds() {
        let mut cache = PrefixCache::new(capacity(4, 4));
        let (first, second, third) = (text(2, 0), text(2, 1000), text(2, 2000));
        cache.keep(&first, 1, pages(2).into_iter());
        cache.keep(&second, 1, pages(2).into_iter());
        let ask = |ids: &[u32]| [ids, &[1]].concat();
        assert_eq!(found(&mut cache, &ask(&first), 1), (2, 2));
        cache.keep(&third, 1, pages(2).into_iter());
        assert!(cache.held <= cache.capacity);
        assert_eq!(found(&mut cache, &ask(&second), 1), (0, 0), "used least recently");
        assert_eq!((found(&mut cache, &ask(&first), 1), found(&mut cache, &ask(&third), 1)), ((2, 2), (2, 2)));
        // A longer text than there is room for: its beginning stays.
        let long = text(9, 5000);
        cache.keep(&long, 2, pages(9).into_iter());
        let (trunk, tail) = found(&mut cache, &ask(&long), 2);
        assert!(trunk >= 3 && tail <= trunk && cache.held <= cache.capacity, "{trunk} {tail}");
        let mut nothing = PrefixCache::new(0);
        nothing.keep(&first, 1, pages(2).into_iter());
        assert_eq!((found(&mut nothing, &ask(&first), 1), nothing.held), ((0, 0), 0));
    }

    /// Pages of a text on a version, in which every value of every block says what it is of: the trunk's how many pages of
    /// which text come before, the tail's the version too.
    fn tagged(text: u32, n: usize, version: u64) -> Vec<(Arc<Page>, Arc<Page>)> {
        let page = |shape: PageShape, tag: f32| {
            let mut pages = Pages::new(shape);
            let rows = vec![tag; PAGE * 2];
            (0..shape.blocks).for_each(|block| pages.write(block, &rows, &rows));
            pages.grow(PAGE);
            Arc::clone(pages.full(0).unwrap())
        };
        let tag = |index: usize| (text * 100 + index as u32) as f32;
        (0..n).map(|index| (page(TRUNK, tag(index)), page(TAIL, tag(index) + version as f32 * 1e4))).collect()
    }

    /// Whether every value of every block is this tag.
    fn all_tagged(page: &Arc<Page>, shape: PageShape, tag: f32) -> bool {
        let pages = Pages::from_full(shape, vec![Arc::clone(page)]);
        let rows = |block| [pages.keys(block, 0), pages.values(block, 0)];
        let mut values = (0..shape.blocks).flat_map(rows).flat_map(|rows| rows.stretches(0, PAGE).flatten());
        values.all(|value| *value == tag)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Law 7, whatever is kept, asked for and forgotten: a page of a tail is never found under another version, at any
        /// block, and no page under another beginning.
        #[test]
        fn no_page_of_another_version_or_text_is_ever_found(
            steps in prop::collection::vec((0u32..4, 1usize..5, 0u64..3, any::<bool>()), 1..40),
            room in 1usize..12,
        ) {
            let mut cache = PrefixCache::new(capacity(room, room));
            for (seed, pages, version, keep) in steps {
                let ids = text(pages, seed * 1000);
                if keep {
                    cache.keep(&ids, version, tagged(seed, pages, version).into_iter());
                }
                prop_assert!(cache.held <= cache.capacity);
                let reached = |node: &Node| node.key.0.is_none_or(|before| cache.nodes.contains_key(&before));
                prop_assert!(cache.nodes.values().all(reached), "a page is kept that nothing leads to");
                prop_assert_eq!(cache.ids.len(), cache.nodes.len());
                let found = cache.find(&[ids, vec![1]].concat(), version);
                prop_assert!(found.tail.len() <= found.trunk.len());
                let tag = |index: usize| (seed * 100 + index as u32) as f32;
                for (index, page) in found.trunk.iter().enumerate() {
                    prop_assert!(all_tagged(page, TRUNK, tag(index)));
                }
                for (index, page) in found.tail.iter().enumerate() {
                    prop_assert!(all_tagged(page, TAIL, tag(index) + version as f32 * 1e4));
                }
            }
        }
    }
}

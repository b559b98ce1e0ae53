//! The active edits as the guard and the recheck need them: their texts, their limits, where they speak. It follows the
//! ledger and is made from the log, so that nothing here has to be durable.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

use super::{
    EditReport, EditRequest, TargetFigures, WriterConfig,
    bench::{Bench, Keys, read_all},
    echo::Echo,
};
use crate::{digest::Digest, edit_log::EditRow, model::Passage, weights::Contribution};

/// For how many tokens of active edits what the trunk made of them is kept, where nothing else is asked for.
pub const CACHED_TOKENS: usize = 16_384;

/// An active edit.
pub struct Member {
    pub prompt: String,
    pub target: String,
    pub passage: Passage,
    /// The least probability that its own guard asks for.
    pub minimum: Option<f32>,
    /// Its figures when it was applied.
    pub applied: Option<TargetFigures>,
    /// Where it speaks; none until it is known.
    pub echo: Option<Echo>,
}

impl Member {
    /// From its row in the log.
    pub fn from_row<B: Bench>(row: &EditRow, bench: &B, config: &WriterConfig) -> Result<Self, String> {
        let request: EditRequest = serde_json::from_value(row.request.clone()).map_err(|error| error.to_string())?;
        let report: Option<EditReport> = serde_json::from_value(row.report.clone()).ok();
        Ok(Self {
            passage: bench.passage(&request.prompt, Some(&request.target)).map_err(|error| error.to_string())?,
            minimum: config.limits(&request.guard).min_probability,
            prompt: request.prompt,
            target: request.target,
            applied: report.map(|report| report.prompt.after),
            echo: None,
        })
    }

    /// Adds where it speaks, as far as its contribution says it.
    pub fn with_contribution(self, contribution: &Contribution) -> Self {
        let echo = Echo::own_keys(contribution).and_then(|keys| Echo::new(contribution, &keys));
        Self { echo: echo.or(self.echo), ..self }
    }
}

/// The active edits.
pub struct Roster<T> {
    members: BTreeMap<Uuid, Arc<Member>>,
    cache: Cache<T>,
}

impl<T: Clone> Roster<T> {
    /// Of no edits; what the trunk made of their texts is kept for `room` tokens.
    pub fn new(room: usize) -> Self {
        Self { members: BTreeMap::new(), cache: Cache { room, ..Cache::default() } }
    }

    /// Follows the set: forgets edits that left it and loads those that it does not know. The error is of the first that
    /// could not be loaded; the others are there.
    pub fn follow(
        &mut self,
        active: &BTreeMap<Uuid, Digest>,
        mut load: impl FnMut(Uuid) -> Result<Member, String>,
    ) -> Result<(), String> {
        self.members.retain(|id, _| active.contains_key(id));
        self.cache.retain(|id| active.contains_key(id));
        let unknown: Vec<Uuid> = active.keys().filter(|id| !self.members.contains_key(id)).copied().collect();
        let mut failed = Ok(());
        for id in unknown {
            match load(id) {
                Ok(member) => drop(self.members.insert(id, Arc::new(member))),
                Err(error) => failed = failed.and(Err(format!("edit {id}: {error}"))),
            }
        }
        failed
    }

    /// Takes in an edit that was just applied, with what the trunk made of it.
    pub fn enter(&mut self, id: Uuid, member: Member, text: T) {
        self.cache.put(id, text, member.passage.ids.len());
        self.members.insert(id, Arc::new(member));
    }

    /// Sets where an edit speaks.
    pub fn set_echo(&mut self, id: Uuid, echo: Option<Echo>) {
        if let Some(member) = self.members.get_mut(&id) {
            let Member { prompt, target, passage, minimum, applied, .. } = member.as_ref();
            let (prompt, target, passage) = (prompt.clone(), target.clone(), passage.clone());
            *member = Arc::new(Member { prompt, target, passage, minimum: *minimum, applied: *applied, echo });
        }
    }

    /// All of them, oldest first.
    pub fn members(&self) -> &BTreeMap<Uuid, Arc<Member>> {
        &self.members
    }

    /// How like each of them a prompt with these keys is, most like first; those of which it is not known are absent.
    pub fn similarities(&self, keys: &Keys) -> Vec<(Uuid, f32)> {
        let likeness = |(id, member): (&Uuid, &Arc<Member>)| Some((*id, member.echo.as_ref()?.similarity(keys)));
        let mut all: Vec<(Uuid, f32)> = self.members.iter().filter_map(likeness).collect();
        // Equal ones in the order of the edits.
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }

    /// `count` edits to score again, beside `without`: half of them (rounded up) those most like the new edits, as far as
    /// [`Roster::similarities`] to each knows them, the rest drawn by `seed`. The same set, edits and seed give the same sample.
    pub fn sample(&self, count: usize, similar: &[Vec<(Uuid, f32)>], without: &[Uuid], seed: Digest) -> Vec<Uuid> {
        let mut nearest: HashMap<Uuid, f32> = HashMap::new();
        for (id, likeness) in similar.iter().flatten() {
            let best = nearest.entry(*id).or_insert(*likeness);
            *best = best.max(*likeness);
        }
        let others = || self.members.keys().filter(|id| !without.contains(id)).copied();
        let mut sample: Vec<Uuid> = others().filter(|id| nearest.contains_key(id)).collect();
        sample.sort_by(|a, b| nearest[b].total_cmp(&nearest[a]));
        sample.truncate(count.div_ceil(2));
        let drawn: Vec<Uuid> = others().filter(|id| !sample.contains(id)).collect();
        let amount = (count - sample.len()).min(drawn.len());
        let mut places = index::sample(&mut ChaCha8Rng::from_seed(seed.0), drawn.len(), amount).into_vec();
        places.sort_unstable();
        sample.extend(places.into_iter().map(|place| drawn[place]));
        sample
    }

    /// What the trunk makes of these edits, in their order, read anew where it is not kept; unknown ones are an error.
    pub fn texts<B: Bench<Text = T>>(&mut self, bench: &B, ids: &[Uuid], budget: usize) -> Result<Vec<T>, String> {
        let passage = |id: &Uuid| self.members.get(id).map(|member| &member.passage);
        let missing: Vec<Uuid> = ids.iter().filter(|id| !self.cache.has(**id)).copied().collect();
        let passages: Option<Vec<Passage>> = missing.iter().map(|id| passage(id).cloned()).collect();
        let passages = passages.ok_or("an edit that is not active was to be read")?;
        let read = read_all(bench, &passages, budget)?;
        let mut fresh: HashMap<Uuid, T> = missing.iter().copied().zip(read).collect();
        let texts = ids.iter().map(|id| fresh.get(id).cloned().or_else(|| self.cache.get(*id)));
        let texts: Option<Vec<T>> = texts.collect();
        for (id, passage) in missing.iter().zip(&passages) {
            if let Some(text) = fresh.remove(id) {
                self.cache.put(*id, text, passage.ids.len());
            }
        }
        texts.ok_or_else(|| "a text was not read".to_owned())
    }
}

/// Texts by edit, a bounded number of tokens of them, those that were used last.
struct Cache<T> {
    texts: HashMap<Uuid, (T, usize, u64)>,
    tokens: usize,
    /// Most tokens.
    room: usize,
    /// Grows with every use.
    clock: u64,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { texts: HashMap::new(), tokens: 0, room: 0, clock: 0 }
    }
}

impl<T: Clone> Cache<T> {
    fn has(&self, id: Uuid) -> bool {
        self.texts.contains_key(&id)
    }

    fn get(&mut self, id: Uuid) -> Option<T> {
        self.clock += 1;
        let (text, _, used) = self.texts.get_mut(&id)?;
        *used = self.clock;
        Some(text.clone())
    }

    fn put(&mut self, id: Uuid, text: T, tokens: usize) {
        self.clock += 1;
        if let Some((_, before, _)) = self.texts.insert(id, (text, tokens, self.clock)) {
            self.tokens -= before;
        }
        self.tokens += tokens;
        while self.tokens > self.room {
            let Some(oldest) = self.texts.iter().min_by_key(|(_, (_, _, used))| *used).map(|(id, _)| *id) else {
                break;
            };
            self.tokens -= self.texts.remove(&oldest).map_or(0, |(_, tokens, _)| tokens);
        }
    }

    fn retain(&mut self, keep: impl Fn(&Uuid) -> bool) {
        self.texts.retain(|id, _| keep(id));
        self.tokens = self.texts.values().map(|(_, tokens, _)| tokens).sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::writer::{bench::Texts, testing::SmallBench};

    fn id(n: usize) -> Uuid {
        Uuid::from_u128(n as u128 + 1)
    }

    fn member(prompt: &str) -> Member {
        let passage = SmallBench::default().passage(prompt, Some("blue")).unwrap();
        Member { prompt: prompt.into(), target: "blue".into(), passage, minimum: None, applied: None, echo: None }
    }

    fn roster(n: usize, room: usize) -> Roster<Passage> {
        let mut roster = Roster::new(room);
        let active = (0..n).map(|i| (id(i), Digest::of(b""))).collect();
        roster.follow(&active, |_| Ok(member("a b"))).unwrap();
        roster
    }

    #[test]
    fn it_follows_the_set() {
        let mut roster = roster(3, 100);
        let active = BTreeMap::from([(id(1), Digest::of(b"")), (id(7), Digest::of(b""))]);
        let mut loaded = Vec::new();
        let load = |id| {
            loaded.push(id);
            Ok(member("c"))
        };
        roster.follow(&active, load).unwrap();
        assert_eq!((loaded, roster.members().len()), (vec![id(7)], 2));
        let more = BTreeMap::from([(id(9), Digest::of(b""))]);
        let error = roster.follow(&more, |_| Err("no".into())).unwrap_err();
        assert!(error.contains(&id(9).to_string()), "{error}");
        let more = BTreeMap::from([(id(9), Digest::of(b"")), (id(10), Digest::of(b""))]);
        let load = |wanted| if wanted == id(9) { Err("no".into()) } else { Ok(member("d")) };
        roster.follow(&more, load).unwrap_err();
        assert!(roster.members().contains_key(&id(10)), "one that can not be read does not keep others out");
    }

    #[test]
    fn texts_are_read_once_while_there_is_room_and_again_when_they_fell_out() {
        let bench = SmallBench::default();
        // Room for two of three tokens each.
        let mut roster = roster(3, 6);
        let read = |roster: &mut Roster<Passage>, ids: &[Uuid]| roster.texts(&bench, ids, 1000).unwrap().len();
        assert_eq!(read(&mut roster, &[id(0), id(1)]), 2);
        assert!(roster.cache.has(id(0)) && roster.cache.has(id(1)));
        assert_eq!(read(&mut roster, &[id(0)]), 1);
        assert_eq!(read(&mut roster, &[id(2)]), 1);
        assert!(roster.cache.has(id(0)) && !roster.cache.has(id(1)), "the one used longest ago went");
        assert_eq!(read(&mut roster, &[id(0), id(1), id(2)]), 3, "more than there is room for");
        assert!(roster.cache.tokens <= 6);
        assert!(roster.texts(&bench, &[id(8)], 1000).is_err());
    }

    proptest! {
        #[test]
        fn a_sample_is_distinct_active_repeatable_and_has_the_most_similar(
            n in 0_usize..40, count in 0_usize..20, near in 0_usize..40, seed: u64, gone in 0_usize..40,
        ) {
            let (roster, seed) = (roster(n, 100), Digest::of(&seed.to_le_bytes()));
            let similar = vec![(0..n).map(|i| (id(i), if i == near { 0.9 } else { 0.1 })).collect::<Vec<_>>()];
            let sample = roster.sample(count, &similar, &[id(gone)], seed);
            let available = n - usize::from(gone < n);
            prop_assert_eq!(sample.len(), count.min(available));
            let distinct: std::collections::BTreeSet<_> = sample.iter().collect();
            prop_assert_eq!(distinct.len(), sample.len());
            prop_assert!(sample.iter().all(|id| roster.members().contains_key(id)) && !sample.contains(&id(gone)));
            if count > 0 && near < n && near != gone {
                prop_assert_eq!(sample[0], id(near));
            }
            prop_assert_eq!(&roster.sample(count, &similar, &[id(gone)], seed), &sample);
        }
    }

    #[test]
    fn another_seed_draws_others() {
        let roster = roster(200, 100);
        let similar = vec![(0..200).map(|i| (id(i), i as f32)).collect::<Vec<_>>()];
        let samples: Vec<_> = (0..4_u8).map(|seed| roster.sample(8, &similar, &[], Digest::of(&[seed]))).collect();
        assert!(samples.iter().all(|sample| sample[..4] == samples[0][..4]), "the nearest stay");
        assert!(samples[1..].iter().all(|sample| sample[4..] != samples[0][4..]));
    }
}

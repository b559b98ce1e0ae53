//! Many sequences in one pass: the trunk once over all of them, the tail once for each version among them, the head once
//! over all rows that are wanted.
//!
//! On a CPU every operation of such a pass works on rows, and a row has the same bits whatever it is computed with
//! ([`super::layers::rowwise`], [`super::layers::dense`], [`super::layers::int8`]). So what a sequence gets does not depend on
//! the others, on their versions, or on the pieces in which its prompt is read.

use candle_core::{Device, Result, Tensor};

use super::{
    Model, ModelError, Projection, Sequence,
    kv::State,
    layers::plan::Rows,
    pages::{PageShape, Pages},
};

/// A network that feeds many sequences in one pass, each with pages of its own; on a CPU.
pub trait Batching: Send + Sync {
    /// What a page of the trunk and one of the tail hold; the trunk's keeps the hidden states at the tail's door.
    fn pages(&self) -> (PageShape, PageShape);

    /// As [`super::Network::trunk`], after what the pages hold; writes them and does not count what it wrote.
    fn trunk_pages(&self, ids: &[u32], lengths: &[usize], pages: &mut [&mut Pages]) -> Result<Tensor>;

    /// As [`super::Network::tail`], in the same way.
    fn tail_pages(
        &self,
        hidden: &Tensor,
        lengths: &[usize],
        rows: Rows<'_>,
        weights: &dyn Projection,
        pages: &mut [&mut Pages],
    ) -> Result<Tensor>;
}

/// One sequence's part of a pass.
pub struct Feed<'a> {
    pub sequence: &'a mut Sequence,
    /// At least one token, after what the sequence holds.
    pub ids: &'a [u32],
    /// Feeds of one version have the same weights.
    pub version: u64,
    pub weights: &'a dyn Projection,
    /// Whether the logits after the last of `ids` are wanted.
    pub logits: bool,
}

impl Model {
    /// Feeds all of these sequences; for each the logits (`vocab_size` of them) after its last token, if they are wanted.
    ///
    /// # Errors
    /// Sequences may then hold a part of what they were fed, which [`Sequence::truncate`] takes away.
    pub fn forward_batch(&self, feeds: &mut [Feed<'_>]) -> std::result::Result<Vec<Option<Vec<f32>>>, ModelError> {
        for feed in feeds.iter() {
            self.check_room(feed.sequence, feed.ids)?;
        }
        let paged = feeds.iter().all(|feed| matches!(feed.sequence.state, State::Paged { .. }));
        match self.network().batching().filter(|_| paged) {
            Some(network) => Ok(pass(self, network, feeds)?),
            None => feeds.iter_mut().map(|feed| self.forward_feed(feed)).collect(),
        }
    }

    fn forward_feed(&self, feed: &mut Feed<'_>) -> std::result::Result<Option<Vec<f32>>, ModelError> {
        let logits = self.forward(feed.sequence, feed.ids, feed.weights)?;
        Ok(feed.logits.then_some(logits))
    }
}

/// A sequence in a pass: its pages and what is new.
struct Member<'a> {
    trunk: &'a mut Pages,
    tail: &'a mut Pages,
    ids: &'a [u32],
    version: u64,
    weights: &'a dyn Projection,
    logits: bool,
}

impl<'a> Member<'a> {
    /// What the trunk has not read yet; it may be ahead of the tail.
    fn unread(&self) -> &'a [u32] {
        let ahead = self.trunk.len() - self.tail.len();
        &self.ids[ahead.min(self.ids.len())..]
    }
}

fn pass(model: &Model, network: &dyn Batching, feeds: &mut [Feed<'_>]) -> Result<Vec<Option<Vec<f32>>>> {
    let mut members: Vec<Member<'_>> = feeds.iter_mut().filter_map(member).collect();
    read(network, &mut members)?;
    // Members of one version, in the order in which versions come.
    let mut groups: Vec<(u64, Vec<usize>)> = Vec::new();
    for (index, member) in members.iter().enumerate() {
        match groups.iter_mut().find(|(version, _)| *version == member.version) {
            Some((_, group)) => group.push(index),
            None => groups.push((member.version, vec![index])),
        }
    }
    let (mut tops, mut owners) = (Vec::new(), Vec::new());
    for (_, group) in groups {
        if let Some(top) = climb(network, &mut members, &group, model.device())? {
            tops.push(top);
            owners.extend(group.into_iter().filter(|index| members[*index].logits));
        }
    }
    let mut answers = vec![None; members.len()];
    if !owners.is_empty() {
        let logits = model.network().decode_logits(&Tensor::cat(&tops, 0)?)?.to_vec2::<f32>()?;
        for (owner, logits) in owners.into_iter().zip(logits) {
            answers[owner] = Some(logits);
        }
    }
    Ok(answers)
}

fn member<'a>(feed: &'a mut Feed<'_>) -> Option<Member<'a>> {
    let Feed { sequence, ids, version, weights, logits } = feed;
    let State::Paged { trunk, tail } = &mut sequence.state else { return None };
    Some(Member { trunk, tail, ids, version: *version, weights: *weights, logits: *logits })
}

/// The trunk, once over whatever it has not read.
fn read(network: &dyn Batching, members: &mut [Member<'_>]) -> Result<()> {
    let lengths: Vec<usize> = members.iter().map(|member| member.unread().len()).filter(|length| *length > 0).collect();
    if lengths.is_empty() {
        return Ok(());
    }
    let ids: Vec<u32> = members.iter().flat_map(|member| member.unread().iter().copied()).collect();
    let reading = |member: &&mut Member<'_>| !member.unread().is_empty();
    let mut pages: Vec<&mut Pages> = members.iter_mut().filter(reading).map(|member| &mut *member.trunk).collect();
    let hidden = network.trunk_pages(&ids, &lengths, &mut pages)?;
    let (width, values) = (hidden.dim(1)?, hidden.flatten_all()?.to_vec1::<f32>()?);
    let mut start = 0;
    for (pages, length) in pages.into_iter().zip(lengths) {
        pages.write_hidden(&values[start * width..(start + length) * width]);
        pages.grow(length);
        start += length;
    }
    Ok(())
}

/// The tail, once over the members of one version; the rows whose logits are wanted, none if there are none.
fn climb(
    network: &dyn Batching,
    members: &mut [Member<'_>],
    group: &[usize],
    device: &Device,
) -> Result<Option<Tensor>> {
    let mut own: Vec<&mut Member<'_>> =
        members.iter_mut().enumerate().filter(|(index, _)| group.contains(index)).map(|(_, member)| member).collect();
    let lengths: Vec<usize> = own.iter().map(|member| member.ids.len()).collect();
    let mut hidden = Vec::new();
    for member in &own {
        let start = member.tail.len();
        (start..start + member.ids.len()).for_each(|position| member.trunk.read_hidden(position, &mut hidden));
    }
    let rows: usize = lengths.iter().sum();
    let hidden = Tensor::from_vec(hidden, (rows, network.pages().0.hidden), device)?;
    let wanted = own.iter().filter(|member| member.logits).count();
    let mut asking: Vec<Vec<u32>> = own.iter().map(|member| last_position(member, member.logits)).collect();
    if wanted == 0 {
        // Somebody has to ask; the answer is thrown away.
        asking[0] = last_position(own[0], true);
    }
    let all = wanted == rows;
    let weights = own[0].weights;
    let mut pages: Vec<&mut Pages> = own.iter_mut().map(|member| &mut *member.tail).collect();
    let asking = if all { Rows::All } else { Rows::At(&asking) };
    let top = network.tail_pages(&hidden, &lengths, asking, weights, &mut pages)?;
    pages.into_iter().zip(lengths).for_each(|(pages, length)| pages.grow(length));
    Ok((wanted > 0).then_some(top))
}

fn last_position(member: &Member<'_>, wanted: bool) -> Vec<u32> {
    let last = member.tail.len() + member.ids.len() - 1;
    if wanted { vec![last as u32] } else { Vec::new() }
}

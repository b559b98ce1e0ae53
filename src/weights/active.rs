//! The active contributions in the order of their digests: an order that the set itself fixes.

use std::{collections::BTreeMap, sync::Arc};

use super::{Contribution, WeightsError, contribution::Values};
use crate::{digest::Digest, model::EditableMatrix};

/// What was made of each active contribution, by its digest, with how often it is in the set.
#[derive(Debug)]
pub(super) struct Active<T>(BTreeMap<Digest, (usize, Arc<T>)>);

impl<T> Clone for Active<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Active<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Active<T> {
    /// The set after some contributions left it and others, of each of which `make` makes what is kept, came. Refused unless all
    /// are rows with keys for matrices of these shapes, and what leaves is there.
    pub fn changed(
        &self,
        shapes: &[EditableMatrix],
        removed: &[&Contribution],
        added: &[&Contribution],
        make: impl Fn(&Contribution) -> Result<T, WeightsError>,
    ) -> Result<Self, WeightsError> {
        for contribution in removed.iter().chain(added) {
            contribution.check_shapes(shapes)?;
            if !contribution.parts().iter().all(|part| matches!(part.values, Values::Joint { .. })) {
                return Err(WeightsError::Malformed("its rows have no keys, which this composition needs".into()));
            }
        }
        let mut edits = self.0.clone();
        for contribution in removed {
            let digest = contribution.digest();
            match edits.get_mut(&digest) {
                Some((count, _)) if *count > 1 => *count -= 1,
                Some(_) => drop(edits.remove(&digest)),
                None => return Err(WeightsError::Malformed("what leaves the set never entered".into())),
            }
        }
        for &contribution in added {
            let digest = contribution.digest();
            match edits.get_mut(&digest) {
                Some((count, _)) => *count += 1,
                None => drop(edits.insert(digest, (1, Arc::new(make(contribution)?)))),
            }
        }
        Ok(Self(edits))
    }

    /// What is kept of each, in order, as often as it is in the set.
    pub fn iter(&self) -> impl Iterator<Item = (&Digest, &Arc<T>)> {
        self.0.iter().flat_map(|(digest, (count, kept))| std::iter::repeat_n((digest, kept), *count))
    }
}

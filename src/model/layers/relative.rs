//! T5's positions: a learned number per head and distance, added to attention's scores. Distances share numbers in
//! buckets, which grow with the distance.

use std::ops::Range;

use candle_core::{Result, Tensor};

/// A stack's table of biases.
#[derive(Debug, Clone)]
pub struct RelativeBias {
    /// `[buckets][heads]`
    table: Vec<Vec<f32>>,
    /// Whether rows look both ways, so that half of the buckets are for what comes later.
    both_ways: bool,
    /// Distances from here on share the last bucket.
    farthest: usize,
}

impl RelativeBias {
    /// From the table `[buckets, heads]`.
    pub fn new(table: &Tensor, both_ways: bool, farthest: usize) -> Result<Self> {
        Ok(Self { table: table.to_vec2()?, both_ways, farthest })
    }

    /// The bucket of a key that stands `distance` after the query (before it where that is negative), by Hugging Face's
    /// rule, in its precision.
    fn bucket(&self, distance: i64) -> usize {
        let (buckets, first, distance) = match self.both_ways {
            true => {
                let half = self.table.len() / 2;
                (half, if distance > 0 { half } else { 0 }, distance.unsigned_abs() as usize)
            }
            false => (self.table.len(), 0, distance.min(0).unsigned_abs() as usize),
        };
        let exact = buckets / 2;
        if distance < exact {
            return first + distance;
        }
        let turns = (distance as f32 / exact as f32).ln() / (self.farthest as f64 / exact as f64).ln() as f32;
        first + (exact + (turns * (buckets - exact) as f32) as usize).min(buckets - 1)
    }

    /// The biases of these distances.
    pub fn at(&self, distances: Range<i64>) -> Distances {
        let buckets: Vec<&Vec<f32>> = distances.clone().map(|distance| &self.table[self.bucket(distance)]).collect();
        let heads = self.table.first().map_or(0, Vec::len);
        let biases = (0..heads).map(|head| buckets.iter().map(|bucket| bucket[head]).collect()).collect();
        Distances { first: distances.start, biases }
    }
}

/// Biases by head and distance.
#[derive(Debug, Clone)]
pub struct Distances {
    /// The distance of the first.
    first: i64,
    /// `[heads][distances]`
    biases: Vec<Vec<f32>>,
}

impl Distances {
    /// How many heads there are biases for.
    pub fn heads(&self) -> usize {
        self.biases.len()
    }

    /// The biases of `count` keys one after another, the first of which stands `distance` after the query.
    pub fn of(&self, head: usize, distance: i64, count: usize) -> &[f32] {
        &self.biases[head][(distance - self.first) as usize..][..count]
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn bias(buckets: usize, both_ways: bool, farthest: usize) -> RelativeBias {
        let table = Tensor::arange(0f32, buckets as f32, &Device::Cpu).unwrap().reshape((buckets, 1)).unwrap();
        RelativeBias::new(&table, both_ways, farthest).unwrap()
    }

    /// What transformers' `T5Attention._relative_position_bucket` gives.
    #[test]
    fn buckets_are_hugging_faces() {
        let both = bias(32, true, 128);
        let got: Vec<usize> =
            [0, -1, -7, -8, -11, -12, -16, -90, -500, 1, 7, 8, 12, 91, 500].map(|d| both.bucket(d)).to_vec();
        assert_eq!(got, [0, 1, 7, 8, 8, 9, 10, 14, 15, 17, 23, 24, 25, 31, 31]);
        let back = bias(32, false, 128);
        let got: Vec<usize> = [5, 0, -1, -15, -16, -18, -19, -32, -112, -113, -500].map(|d| back.bucket(d)).to_vec();
        assert_eq!(got, [0, 0, 1, 15, 16, 16, 17, 21, 30, 31, 31]);
    }

    #[test]
    fn a_slice_begins_at_its_distance() {
        let distances = bias(8, true, 16).at(-3..4);
        assert_eq!(distances.of(0, -1, 3), [1.0, 0.0, 5.0]);
        assert_eq!(distances.of(0, -3, 1), [2.0]);
    }
}

//! Who reads how much in a turn: prompts share one chunk, the shortest first, and none waits for ever.

/// Turns after which whoever has not read goes before shorter ones.
const PATIENCE: u64 = 8;

/// Something that is to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader {
    /// Tokens; 0 if it reads nothing.
    pub unread: usize,
    /// Whether it can be read only as a whole.
    pub whole: bool,
    /// The turn in which it last read, or joined.
    pub last_read: u64,
}

/// How many tokens each reader reads in this turn, together at most `chunk`, unless a single one that is read as a whole
/// is longer than that.
///
/// The shortest go first, which gives the least mean time to the first token; one that has waited for [`PATIENCE`] turns
/// goes before them, so a long prompt gets a chunk at least every so many turns for each of those that wait like it.
pub(super) fn shares(readers: &[Reader], chunk: usize, turn: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..readers.len()).filter(|i| readers[*i].unread > 0).collect();
    order.sort_by_key(|i| {
        let Reader { unread, last_read, .. } = readers[*i];
        let patient = turn.saturating_sub(last_read) < PATIENCE;
        (patient, if patient { unread as u64 } else { last_read })
    });
    let mut shares = vec![0; readers.len()];
    let mut left = chunk;
    for i in order {
        let Reader { unread, whole, .. } = readers[i];
        if whole && unread > left && left < chunk {
            continue;
        }
        shares[i] = if whole { unread } else { unread.min(left) };
        left = left.saturating_sub(shares[i]);
        if left == 0 {
            break;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn prompt(unread: usize, last_read: u64) -> Reader {
        Reader { unread, whole: false, last_read }
    }

    const fn passage(unread: usize, last_read: u64) -> Reader {
        Reader { unread, whole: true, last_read }
    }

    #[test]
    fn the_shortest_go_first_and_the_rest_of_the_chunk_is_used() {
        assert_eq!(shares(&[prompt(100, 1), prompt(0, 1), prompt(10, 1), prompt(20, 1)], 64, 2), [34, 0, 10, 20]);
        assert_eq!(shares(&[prompt(100, 1), prompt(90, 1)], 64, 2), [0, 64]);
    }

    #[test]
    fn whole_ones_wait_until_they_fit_or_come_first() {
        assert_eq!(shares(&[prompt(10, 1), passage(60, 1)], 64, 2), [10, 0]);
        assert_eq!(shares(&[prompt(10, 1), passage(50, 1)], 64, 2), [10, 50]);
        assert_eq!(shares(&[passage(500, 1)], 64, 2), [500], "alone it is read, however long");
        assert_eq!(shares(&[prompt(10, 2), passage(500, 1)], 64, 9), [0, 500], "it has waited long enough");
    }

    #[test]
    fn none_starves() {
        // A short prompt joins every turn; the long one still gets its chunks.
        let mut long = prompt(640, 0);
        let mut turns = 0;
        while long.unread > 0 {
            turns += 1;
            let short = prompt(64, turns);
            let shares = shares(&[long, short], 64, turns);
            if shares[0] > 0 {
                long = prompt(long.unread - shares[0], turns);
            }
            assert!(shares.iter().sum::<usize>() <= 64);
            assert!(turns < 200, "starved");
        }
        assert!((9 * PATIENCE..=10 * PATIENCE).contains(&turns), "ten chunks took {turns} turns");
    }
}

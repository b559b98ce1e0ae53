//! The joint solve: many edits' changes of one matrix, found together so that none speaks where another should.
//!
//! An edit contributes rows: the inputs `k_i` at which it was captured, its reading direction `u_i` and what it says,
//! `d_i`. Alone, its delta `sum d_i u_i^T` answers its own key `k_i` with `v_i = sum_j (k_i . u_j) d_j` over its own rows
//! `j`. Added up, many edits answer each other's keys too. Instead, the outputs `X` are solved for, the reading
//! directions kept: with `K`, `U`, `D` the rows of all active edits, `G = K U^T`, and `s` the mean of `|G_ii|`,
//!
//! ```text
//! least |G X - V|^2 + r^2 |X - D|^2        r = ridge s        W = W0 + X^T U
//! ```
//!
//! so that at every edit's key the result is what its own delta alone would give, as far as the keys can be told apart, and
//! `X` stays near `D` where they can not. An edit that is alone gets its own delta, whatever the ridge. As squares they
//! have a minimum whatever `G` is; `(G + r I) X = V + r D`, which has the same solution for a small `r`, has none
//! where an eigenvalue of `G` is near `-r`, and close to it weights that destroy a model: `G` is not symmetric, and with some
//! hundred edits such eigenvalues do occur.
//!
//! `V = B D`, where `B` is `G` between rows of the same edit and zero elsewhere. So `C = G - B` is the cross-talk, and with
//! `N = G^T G + r^2 I` the solution is `X = D - N^-1 G^T C D`, and the change `X^T U = D^T (r^2 + B^T G) N^-1 U`: whichever
//! side of `D` and `U` is narrower is solved for.
//!
//! Least squares (MALMEN) has every key as its own reading direction, `U = K`, and `D` as the outputs that are wanted at the
//! keys, whatever else is active: `(G + ridge I) X = D`.
//!
//! Everything here is in f64 save the products of `K` with `U`, on one thread, in the order of the rows: on one kind of
//! machine the bits are a function of the rows and their order alone.

use faer::{
    Accum, Mat, MatRef, Par, Side,
    linalg::{
        matmul::{
            matmul,
            triangular::{self, BlockStructure},
        },
        solvers::{Llt, Solve},
    },
};

use super::EditorError;

/// Which system is solved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Each edit's own response, damped by a ridge in units of `s`.
    Joint { ridge: f32 },
    /// Given outputs, with a plain ridge.
    LeastSquares { ridge: f32 },
}

/// The rows of several edits at one matrix, one edit after another.
#[derive(Debug, Clone, Copy)]
pub struct JointRows<'a> {
    /// `K [n, d_in]`
    pub keys: &'a [f32],
    /// `U [n, d_in]`
    pub right: &'a [f32],
    /// `D [n, d_out]`
    pub left: &'a [f32],
    /// Rows of each edit; they add up to `n`.
    pub edits: &'a [usize],
    pub d_in: usize,
    pub d_out: usize,
}

/// A change of one matrix, `left^T right`.
#[derive(Debug, Clone, PartialEq)]
pub struct Solved {
    /// `[n, d_out]`
    pub left: Vec<f32>,
    /// `[n, d_in]`
    pub right: Vec<f32>,
}

impl JointRows<'_> {
    /// Solves for the change of the matrix. [`EditorError::NonFinite`] if there is no solution in the range of f32.
    pub fn solve(&self, rule: Rule) -> Result<Solved, EditorError> {
        let n: usize = self.edits.iter().sum();
        if n == 0 {
            return Ok(Solved { left: Vec::new(), right: Vec::new() });
        }
        let solved = match rule {
            Rule::Joint { ridge } => self.joint(&self.gram(n), ridge),
            Rule::LeastSquares { ridge } => self.least_squares(self.gram(n), ridge),
        };
        let failed = || EditorError::NonFinite { what: format!("the joint solve of {n} rows") };
        let solved = solved.ok_or_else(failed)?;
        match solved.left.iter().chain(&solved.right).all(|value| value.is_finite()) {
            true => Ok(solved),
            false => Err(failed()),
        }
    }

    /// None where nothing speaks at its own key.
    fn joint(&self, gram: &Mat<f64>, ridge: f32) -> Option<Solved> {
        let n = gram.nrows();
        let damping = (f64::from(ridge) * (0..n).map(|i| gram[(i, i)].abs()).sum::<f64>() / n as f64).powi(2);
        let factor = positive(&normal(gram, damping))?;
        if self.d_in <= self.d_out {
            let read = factor.solve(&wide(self.right, self.d_in));
            let own = self.within_edits(|i, j| gram[(j, i)], &product(gram.as_ref(), &read));
            let right = Mat::from_fn(n, self.d_in, |i, j| damping * read[(i, j)] + own[(i, j)]);
            return Some(Solved { left: self.left.to_vec(), right: narrow(&right) });
        }
        let said = wide(self.left, self.d_out);
        let own = self.within_edits(|i, j| gram[(i, j)], &said);
        let cross_talk = product(gram.as_ref(), &said) - own;
        let left = &said - factor.solve(&product(gram.transpose(), &cross_talk));
        Some(Solved { left: narrow(&left), right: self.right.to_vec() })
    }

    fn least_squares(&self, mut gram: Mat<f64>, ridge: f32) -> Option<Solved> {
        (0..gram.nrows()).for_each(|i| gram[(i, i)] += f64::from(ridge));
        let factor = positive(&gram)?;
        Some(match self.d_in <= self.d_out {
            true => Solved { left: self.left.to_vec(), right: narrow(&factor.solve(&wide(self.right, self.d_in))) },
            false => Solved { left: narrow(&factor.solve(&wide(self.left, self.d_out))), right: self.right.to_vec() },
        })
    }

    /// `G = K U^T`.
    fn gram(&self, n: usize) -> Mat<f64> {
        let keys = MatRef::from_row_major_slice(self.keys, n, self.d_in);
        let right = MatRef::from_row_major_slice(self.right, n, self.d_in);
        let mut gram = Mat::<f32>::zeros(n, n);
        matmul(gram.as_mut(), Accum::Replace, keys, right.transpose(), 1.0, Par::Seq);
        Mat::from_fn(n, n, |i, j| f64::from(gram[(i, j)]))
    }

    /// `C x`, with `C` given by its elements between rows of the same edit: all others are zero.
    fn within_edits(&self, c: impl Fn(usize, usize) -> f64, x: &Mat<f64>) -> Mat<f64> {
        let mut product = Mat::zeros(x.nrows(), x.ncols());
        let mut start = 0;
        for rows in self.edits {
            let own = start..start + rows;
            for column in 0..x.ncols() {
                for i in own.clone() {
                    product[(i, column)] = own.clone().map(|j| c(i, j) * x[(j, column)]).sum();
                }
            }
            start += rows;
        }
        product
    }
}

/// `G^T G + damping I`; what is above the diagonal stays zero.
fn normal(gram: &Mat<f64>, damping: f64) -> Mat<f64> {
    let n = gram.nrows();
    let mut normal = Mat::zeros(n, n);
    let (lower, rectangular) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    let transposed = gram.transpose();
    triangular::matmul(
        normal.as_mut(),
        lower,
        Accum::Replace,
        transposed,
        rectangular,
        gram.as_ref(),
        rectangular,
        1.0,
        Par::Seq,
    );
    (0..n).for_each(|i| normal[(i, i)] += damping);
    normal
}

/// The Cholesky factor of what is on and below the diagonal; none unless it is positive definite.
fn positive(matrix: &Mat<f64>) -> Option<Llt<f64>> {
    Llt::new(matrix.as_ref(), Side::Lower).ok()
}

fn product(a: MatRef<'_, f64>, b: &Mat<f64>) -> Mat<f64> {
    let mut product = Mat::zeros(a.nrows(), b.ncols());
    matmul(product.as_mut(), Accum::Replace, a, b.as_ref(), 1.0, Par::Seq);
    product
}

/// Row-major `[n, width]` values as a matrix of f64.
fn wide(values: &[f32], width: usize) -> Mat<f64> {
    Mat::from_fn(values.len() / width, width, |i, j| f64::from(values[i * width + j]))
}

/// Row-major f32 values.
fn narrow(matrix: &Mat<f64>) -> Vec<f32> {
    (0..matrix.nrows()).flat_map(|i| (0..matrix.ncols()).map(move |j| matrix[(i, j)] as f32)).collect()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// `x [width]` through `left^T right`.
    fn answer(left: &[f32], right: &[f32], x: &[f32], d_out: usize) -> Vec<f32> {
        let mut y = vec![0f32; d_out];
        for (left, right) in left.chunks_exact(d_out).zip(right.chunks_exact(x.len())) {
            let spoken: f32 = right.iter().zip(x).map(|(a, b)| a * b).sum();
            y.iter_mut().zip(left).for_each(|(y, left)| *y += spoken * left);
        }
        y
    }

    fn assert_close(got: &[f32], want: &[f32]) {
        let scale = want.iter().fold(0f32, |most, value| most.max(value.abs()));
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= 1e-3 * scale, "{got} for {want}");
        }
    }

    #[test]
    fn with_a_small_ridge_every_edit_gets_its_own_answer_at_its_keys() {
        for (d_in, d_out) in [(24, 10), (10, 24)] {
            let edits = [2, 1, 3];
            let (keys, right) = (random(6 * d_in, 1), random(6 * d_in, 2));
            let left = random(6 * d_out, 3);
            let rows = JointRows { keys: &keys, right: &right, left: &left, edits: &edits, d_in, d_out };
            let solved = rows.solve(Rule::Joint { ridge: 1e-7 }).unwrap();
            let mut start = 0;
            for edit in edits {
                let own = |values: &[f32], width: usize| values[start * width..(start + edit) * width].to_vec();
                for key in own(&keys, d_in).chunks_exact(d_in) {
                    let alone = answer(&own(&left, d_out), &own(&right, d_in), key, d_out);
                    assert_close(&answer(&solved.left, &solved.right, key, d_out), &alone);
                }
                start += edit;
            }
        }
    }

    #[test]
    fn an_edit_that_is_alone_keeps_its_delta() {
        for (d_in, d_out) in [(5, 9), (9, 5)] {
            let (keys, right, left) = (random(3 * d_in, 1), random(3 * d_in, 2), random(3 * d_out, 3));
            let rows = JointRows { keys: &keys, right: &right, left: &left, edits: &[3], d_in, d_out };
            let solved = rows.solve(Rule::Joint { ridge: 0.3 }).unwrap();
            let x = random(d_in, 4);
            assert_close(&answer(&solved.left, &solved.right, &x, d_out), &answer(&left, &right, &x, d_out));
        }
    }

    /// The change is `D` plus the least step that answers the cross-talk, from the normal equations written out.
    #[test]
    fn the_damped_solution_has_no_gradient_left() {
        for (d_in, d_out) in [(4, 7), (7, 4)] {
            let (keys, right, left) = (random(6 * d_in, 1), random(6 * d_in, 2), random(6 * d_out, 3));
            let rows = JointRows { keys: &keys, right: &right, left: &left, edits: &[1, 2, 3], d_in, d_out };
            let solved = rows.solve(Rule::Joint { ridge: 0.2 }).unwrap();
            let gram = rows.gram(6);
            let said = wide(&left, d_out);
            let damping = (0.2 * (0..6).map(|i| gram[(i, i)].abs()).sum::<f64>() / 6.0).powi(2);
            let wanted = rows.within_edits(|i, j| gram[(i, j)], &said);
            let right_side = product(gram.transpose(), &wanted) + &said * faer::Scale(damping);
            let outputs = (product(gram.transpose(), &gram) + Mat::<f64>::identity(6, 6) * faer::Scale(damping))
                .partial_piv_lu()
                .solve(&right_side);
            let x = random(d_in, 4);
            let want = answer(&narrow(&outputs), &right, &x, d_out);
            assert_close(&answer(&solved.left, &solved.right, &x, d_out), &want);
        }
    }

    /// Two edits whose keys are read the wrong way round: `G` has the eigenvalue `-r` for this ridge.
    #[test]
    fn an_eigenvalue_at_the_ridge_destroys_nothing() {
        let (keys, right) = ([1.0, 0.0, 0.0, 1.0], [1.0, 1.1, 1.1, 1.0]);
        let left = [1.0, -1.0];
        let rows = JointRows { keys: &keys, right: &right, left: &left, edits: &[1, 1], d_in: 2, d_out: 1 };
        let solved = rows.solve(Rule::Joint { ridge: 0.1 }).unwrap();
        let largest = solved.left.iter().fold(0f32, |most, value| most.max(value.abs()));
        assert!(largest < 10.0, "{solved:?}");
    }

    #[test]
    fn least_squares_gives_the_wanted_outputs_at_the_keys() {
        for (d_in, d_out) in [(24, 10), (10, 24)] {
            let (keys, left) = (random(6 * d_in, 1), random(6 * d_out, 2));
            let rows = JointRows { keys: &keys, right: &keys, left: &left, edits: &[2, 4], d_in, d_out };
            let solved = rows.solve(Rule::LeastSquares { ridge: 1e-6 }).unwrap();
            for (key, wanted) in keys.chunks_exact(d_in).zip(left.chunks_exact(d_out)) {
                assert_close(&answer(&solved.left, &solved.right, key, d_out), wanted);
            }
        }
    }

    #[test]
    fn nothing_to_solve_is_no_change_and_no_solution_is_an_error() {
        let none = JointRows { keys: &[], right: &[], left: &[], edits: &[], d_in: 3, d_out: 2 };
        assert!(none.solve(Rule::Joint { ridge: 0.1 }).unwrap().left.is_empty());
        let zero = JointRows { keys: &[0.0; 3], right: &[0.0; 3], left: &[1.0; 2], edits: &[1], d_in: 3, d_out: 2 };
        assert!(matches!(zero.solve(Rule::Joint { ridge: 0.1 }), Err(EditorError::NonFinite { .. })));
    }
}

//! The product of rows with f32 weights beside candle's, at the shapes of SmolLM2-135M's last blocks: `cargo bench --bench
//! dense`. Microseconds, the best of 30.

use std::{hint::black_box, time::Instant};

use amend::model::layers::dense;
use candle_core::{Device, Result, Tensor};

fn main() -> Result<()> {
    println!("{} threads", rayon::current_num_threads());
    println!("d_out x d_in, rows: ours, candle's, us");
    for (d_out, d_in) in [(1536, 576), (576, 1536), (576, 576)] {
        let w = Tensor::randn(0f32, 1.0, (d_out, d_in), &Device::Cpu)?;
        for rows in [1, 2, 4, 8, 16, 64, 256] {
            let x = Tensor::randn(0f32, 1.0, (rows, d_in), &Device::Cpu)?;
            let transposed = w.t()?;
            let ours = best(|| dense::matmul(&x, &w))?;
            let theirs = best(|| x.matmul(&transposed))?;
            println!("{d_out} x {d_in}, {rows}: {ours:.0}, {theirs:.0}");
        }
    }
    Ok(())
}

fn best(product: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..30 {
        let began = Instant::now();
        black_box(product()?);
        best = best.min(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(best)
}

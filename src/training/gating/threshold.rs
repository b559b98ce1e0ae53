//! Where the threshold of a gate stands.

use std::ops::Range;

use candle_core::{Device, Result as CandleResult, Tensor};

use super::Inputs;
use crate::editor::gate::{Gate, Scalars};

/// Numbers of active edits at which the threshold is set, each with the share of the neighbours that is then given to silence.
/// Less is asked where few edits are active: the one that speaks at a neighbour is then the neighbour's own, which its editor
/// teaches to leave it alone; of many it is another.
const SILENT: [(usize, f64); 4] = [(1, 0.65), (10, 0.70), (100, 0.75), (800, 0.75)];

/// The gate with the threshold, and its growth, that come nearest to what [`SILENT`] asks for on the neighbours of `records`: by least
/// squares.
pub fn set_threshold(gate: Gate, inputs: &Inputs, records: &[Range<usize>]) -> CandleResult<Gate> {
    let mut points = Vec::with_capacity(SILENT.len());
    for (number, silent) in SILENT.into_iter().filter(|(number, _)| *number <= records.len()) {
        let mut thresholds = Vec::new();
        for group in records.chunks_exact(number) {
            thresholds.extend(thresholds_of(&gate, inputs, group)?);
        }
        thresholds.sort_by(f64::total_cmp);
        let at = ((thresholds.len() - 1) as f64 * silent).round() as usize;
        points.push(((number as f64).ln(), thresholds[at]));
    }
    let scalars = match line(&points) {
        Some((threshold, growth)) => {
            Scalars { threshold: threshold as f32, growth: growth.max(0.0) as f32, ..gate.scalars }
        }
        // So few records that none was held out.
        None => gate.scalars,
    };
    Ok(Gate { scalars, ..gate })
}

/// At each neighbour of a group whose edits are all active, the threshold at which silence would have half of the voice.
fn thresholds_of(gate: &Gate, inputs: &Inputs, group: &[Range<usize>]) -> CandleResult<Vec<f64>> {
    let rows: Vec<u32> = group.iter().flat_map(|rows| rows.clone().map(|row| row as u32)).collect();
    let rows = Tensor::new(rows, &Device::Cpu)?;
    let read = |all: &Tensor| gate.read(&all.index_select(&rows, 0)?);
    let similar = read(&inputs.neighbours)?.matmul(&read(&inputs.prompts)?.t()?)?.to_vec2::<f32>()?;
    let sharpness = f64::from(gate.scalars.sharpness);
    let threshold = |similar: &Vec<f32>| {
        let mut rest = similar.as_slice();
        let mut total = 0.0;
        for keys in group {
            let (own, others) = rest.split_at(keys.len());
            rest = others;
            total += (sharpness * f64::from(own.iter().copied().fold(-1.0, f32::max))).exp();
        }
        total.ln() / sharpness
    };
    Ok(similar.iter().map(threshold).collect())
}

/// The least-squares line through points, as its value at 0 and its slope; level through one point, none through none.
fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = match points.len() {
        0 => return None,
        1 => 0.0,
        _ => points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread,
    };
    Some((y - slope * x, slope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_through_points() {
        assert_eq!(line(&[]), None);
        assert_eq!(line(&[(2.0, 5.0)]), Some((5.0, 0.0)));
        let (at_zero, slope) = line(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]).unwrap();
        assert!((at_zero - 1.0).abs() < 1e-12 && (slope - 2.0).abs() < 1e-12);
    }
}

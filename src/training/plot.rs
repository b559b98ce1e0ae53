//! The plot of a run, as SVG: loss, paraphrase exact match and KL against steps.

use std::path::Path;

use plotters::prelude::*;

use super::{TrainingError, run_state::History};

/// Width and height of the picture, pixels.
const SIZE: (u32, u32) = (900, 700);

/// One curve.
struct Curve {
    name: &'static str,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

/// Writes the history's plot; nothing while there is nothing to show.
pub fn write(history: &History, path: &Path) -> Result<(), TrainingError> {
    if history.steps.len() + history.validations.len() < 2 {
        return Ok(());
    }
    draw(history, path).map_err(|error| TrainingError::Io {
        what: path.display().to_string(),
        source: std::io::Error::other(error.to_string()),
    })
}

fn draw(history: &History, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 / 2);
    let train = |figure: fn(&super::run_state::StepFigures) -> f64| {
        history.steps.iter().map(|step| (step.step as f64, figure(step))).collect::<Vec<_>>()
    };
    let valid = |figure: fn(&super::validate::SetFigures) -> f64| {
        history.validations.iter().map(|v| (v.step as f64, v.mean(figure))).collect::<Vec<_>>()
    };
    let losses = [
        Curve { name: "training loss", color: BLUE, points: train(|step| step.loss) },
        Curve { name: "validation loss", color: RED, points: valid(|set| set.loss) },
        Curve { name: "neighbour KL", color: MAGENTA, points: valid(|set| set.neighbour_kl) },
    ];
    let shares = [
        Curve { name: "paraphrase, training", color: BLUE, points: train(|step| step.paraphrase) },
        Curve { name: "paraphrase, validation", color: RED, points: valid(|set| set.paraphrase) },
        Curve { name: "prompt, validation", color: GREEN, points: valid(|set| set.prompt) },
        Curve { name: "neighbour unchanged", color: MAGENTA, points: valid(|set| set.neighbour_unchanged) },
    ];
    chart(&upper, "Loss and KL (nats)", &losses, None)?;
    chart(&lower, "Shares", &shares, Some(1.0))?;
    root.present()?;
    Ok(())
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    curves: &[Curve],
    top: Option<f64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|curve| curve.points.iter());
    let right = points().fold(1.0, |most: f64, (x, _)| most.max(*x));
    let top = top.unwrap_or_else(|| points().fold(1e-3, |most: f64, (_, y)| most.max(*y)).min(10.0));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().x_desc("step").draw()?;
    for curve in curves {
        let style = curve.color.stroke_width(1);
        let points = curve.points.iter().map(|&(x, y)| (x, y.min(top)));
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    Ok(())
}

//! The figures of editors against the number of edits that are active at once, as SVG.

use std::path::Path;

use plotters::prelude::*;

use super::{EditorReport, Figures, Report};
use crate::training::TrainingError;

/// Width and height of the picture, pixels.
const SIZE: (u32, u32) = (1000, 1000);
const COLORS: [RGBColor; 6] = [BLUE, RED, GREEN, MAGENTA, CYAN, BLACK];

/// A panel: its title, and the figure that it shows.
type Panel = (&'static str, fn(&Figures) -> Option<f64>);

const PANELS: [Panel; 6] = [
    ("prompt, exact match", |figures| Some(figures.teacher_forced.prompt.share)),
    ("paraphrase, exact match", |figures| Some(figures.teacher_forced.paraphrase.share)),
    ("neighbours, greedy unchanged", |figures| Some(figures.neighbour.unchanged.share)),
    ("unrelated, greedy unchanged", |figures| figures.unrelated.map(|unrelated| unrelated.unchanged.share)),
    ("neighbours, KL (nats)", |figures| Some(figures.neighbour.kl.mean)),
    ("running text, perplexity", |figures| figures.running_text.map(|text| text.perplexity_after)),
];

/// Draws a report.
pub fn plot(report: &Report, path: &Path) -> Result<(), TrainingError> {
    draw(report, path).map_err(|error| TrainingError::Io {
        what: path.display().to_string(),
        source: std::io::Error::other(error.to_string()),
    })
}

fn draw(report: &Report, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, panel) in root.split_evenly((3, 2)).iter().zip(PANELS) {
        chart(area, panel, &report.editors)?;
    }
    root.present()?;
    Ok(())
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    (title, figure): Panel,
    editors: &[EditorReport],
) -> Result<(), Box<dyn std::error::Error>> {
    let curve = |editor: &EditorReport| -> Vec<(f64, f64)> {
        let points = editor.sets.iter();
        points.filter_map(|set| Some((set.together as f64, figure(&set.figures)?))).collect()
    };
    let points: Vec<(f64, f64)> = editors.iter().flat_map(curve).collect();
    let right = points.iter().fold(2.0, |most: f64, (x, _)| most.max(*x));
    let highest = points.iter().fold(1e-3, |most: f64, (_, y)| most.max(*y));
    let top = if title.contains("match") || title.contains("unchanged") { 1.0 } else { highest * 1.05 };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(44)
        .build_cartesian_2d((1.0..right).log_scale(), 0.0..top)?;
    chart.configure_mesh().x_desc("edits active at once").draw()?;
    for (editor, color) in editors.iter().zip(COLORS.into_iter().cycle()) {
        let points = curve(editor);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), &color))?
            .label(&editor.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, color.filled())))?;
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    Ok(())
}

//! How figures are written: as the shortest decimal that reads back as the same `f32`.
//!
//! Left alone, serde_json writes an `f32` so when it writes text, but with the digits of an `f64` when it makes a
//! [`serde_json::Value`]; an edit's answer and its entry in the log would differ.

use serde::Serializer;

/// Writes `figure`.
pub fn serialize<S: Serializer>(figure: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    // The text of a number parses; what is no number is written as serde_json does it.
    serializer.serialize_f64(figure.to_string().parse().unwrap_or(f64::from(*figure)))
}

/// Writes a figure that may be absent.
pub fn serialize_option<S: Serializer>(figure: &Option<f32>, serializer: S) -> Result<S::Ok, S::Error> {
    match figure {
        Some(figure) => serialize(figure, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use crate::writer::TargetFigures;

    #[test]
    fn a_figure_reads_the_same_as_text_and_as_a_value() {
        for probability in [0.1, 0.000_809_232_5, 1.0, 0.0, f32::MIN_POSITIVE, f32::EPSILON] {
            let figures = TargetFigures { probability, greedy: false };
            let (text, value) = (serde_json::to_string(&figures).unwrap(), serde_json::to_value(figures).unwrap());
            assert_eq!(text, value.to_string());
            assert_eq!(serde_json::from_value::<TargetFigures>(value).unwrap(), figures);
            assert_eq!(serde_json::from_str::<TargetFigures>(&text).unwrap(), figures);
        }
        let figures = TargetFigures { probability: 0.1, greedy: true };
        assert_eq!(serde_json::to_value(figures).unwrap()["probability"].to_string(), "0.1");
    }
}

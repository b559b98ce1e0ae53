//! flan-T5-small, as `scripts/convert-flan-t5` makes it of an ONNX package: its ids equal those of the package's tokenizer, and
//! its logits those of onnxruntime on the package's graphs with products in f32. The graphs as shipped round what enters a
//! product to 8 bits; how far that takes them is said, not judged.
//!
//! Skipped, with a message, where the folder is absent.

use std::collections::HashMap;

use amend::model::{Extent, LoadOptions, Model, Rows};
use candle_core::{D, Tensor};

use crate::common::{assert_close, flan_t5, read_safetensors, relative_error};

/// Of the largest logit.
const TOLERANCE: f32 = 1e-4;
const INPUTS: usize = 20;

struct Recorded(HashMap<String, Tensor>);

impl Recorded {
    fn ids(&self, what: &str, input: usize) -> Vec<u32> {
        let ids: Vec<i64> = self.0[&format!("{what}.{input}")].to_vec1().unwrap();
        ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect()
    }

    fn logits(&self, what: &str, input: usize) -> &Tensor {
        &self.0[&format!("{what}.{input}")]
    }
}

fn best(logits: &Tensor) -> Vec<u32> {
    logits.argmax(D::Minus1).unwrap().to_vec1().unwrap()
}

#[test]
fn flan_t5_computes_what_onnxruntime_computes() {
    let Some(folder) = flan_t5() else { return };
    let (tensors, metadata) = read_safetensors(&folder.join("parity/onnxruntime.safetensors"));
    let recorded = Recorded(tensors);
    let texts: Vec<String> = serde_json::from_str(&metadata["inputs"]).unwrap();
    assert_eq!(texts.len(), INPUTS);
    let model = Model::load(&folder, &LoadOptions::default()).unwrap();
    let base = model.base().as_ref();
    let (mut worst, mut rounded, mut places, mut same) = (0f32, 0f32, 0, 0);
    for (input, text) in texts.iter().enumerate() {
        let (source, decoder) = (recorded.ids("source", input), recorded.ids("decoder", input));
        assert_eq!(
            model.tokenizer().encode_prompt(text).unwrap(),
            [source.as_slice(), &decoder[..1]].concat(),
            "{text}"
        );
        let extents = [Extent { source: source.len(), target: decoder.len() }];
        let hidden = model.network().trunk(&[source, decoder.clone()].concat(), &extents, None).unwrap();
        let top = model.network().tail(&hidden, &extents, Rows::All, base, None).unwrap();
        let logits = model.network().logits(&top).unwrap();
        let want = recorded.logits("f32", input);
        assert_close(text, &logits, want, TOLERANCE);
        assert_eq!(best(&logits), best(want), "{text}");
        assert_eq!(best(want)[..decoder.len() - 1], decoder[1..], "the answer was decoded greedily");

        let shipped = recorded.logits("int8", input);
        worst = worst.max(relative_error(&logits, want));
        rounded = rounded.max(relative_error(shipped, want));
        places += decoder.len();
        same += best(shipped).iter().zip(best(want)).filter(|(shipped, want)| **shipped == *want).count();
    }
    println!(
        "{INPUTS} inputs, {places} places: relative error {worst:.1e} of products in f32; the graphs as shipped are up to \
         {rounded:.2} away, and have the same best token at {same} places"
    );
}

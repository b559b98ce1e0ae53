//! Puts networks together from a checkpoint: below the tail in the file's own precision, in the tail dense, so that
//! gradients pass, with its MLP matrices editable.

use candle_core::{Device, Tensor};

use super::{
    DenseMatrices, EditableMatrix, ModelError,
    layers::{Linear, Norm, linear::frozen_matmul, rescore::rescore},
    load::Checkpoint,
    matrices::NoEditable,
};

/// How a checkpoint lays out the weights of linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[d_out, d_in]`
    Linear,
    /// `[d_in, d_out]`: Hugging Face's `Conv1D`. Turned when it is read, so that an editable matrix is always
    /// `[d_out, d_in]`.
    Conv1d,
}

/// Where a layer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Below the tail: no gradient passes.
    Trunk,
    /// In the tail, in a block that edits do not change.
    Frozen,
    /// In the tail, in a block whose MLP matrices edits change.
    Edited,
}

impl Place {
    /// Of a block that is edited or lies below those that are.
    pub fn of(edited: bool) -> Self {
        if edited { Self::Edited } else { Self::Trunk }
    }
}

/// Reads layers by Hugging Face's names, and collects the editable matrices as they are read.
pub struct Builder<'a> {
    checkpoint: &'a mut dyn Checkpoint,
    layout: Layout,
    place: Place,
    editable: Vec<EditableMatrix>,
    base: Vec<Tensor>,
}

impl<'a> Builder<'a> {
    /// Begins below the tail.
    pub fn new(checkpoint: &'a mut dyn Checkpoint, layout: Layout) -> Self {
        Self { checkpoint, layout, place: Place::Trunk, editable: Vec::new(), base: Vec::new() }
    }

    /// Where the tensors go.
    pub fn device(&self) -> Device {
        self.checkpoint.device().clone()
    }

    /// Where the layers lie that are read from now on.
    pub fn set_place(&mut self, place: Place) {
        self.place = place;
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }

    /// Any tensor, as the checkpoint has it.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        self.checkpoint.dense(name, shape)
    }

    /// The weight of a linear layer as f32, `(d_out, d_in)`.
    pub fn weight(&mut self, name: &str, (d_out, d_in): (usize, usize)) -> Result<Tensor, ModelError> {
        match self.layout {
            Layout::Linear => self.checkpoint.dense(name, &[d_out, d_in]),
            Layout::Conv1d => Ok(self.checkpoint.dense(name, &[d_in, d_out])?.t()?.contiguous()?),
        }
    }

    /// The bias that belongs to a weight, if the checkpoint has one.
    pub fn bias(&mut self, weight: &str, d_out: usize) -> Result<Option<Tensor>, ModelError> {
        self.checkpoint.optional(&weight.replace(".weight", ".bias"), &[d_out])
    }

    /// A linear layer that no edit changes, with its bias if it has one.
    pub fn linear(&mut self, weight: &str, shape: (usize, usize)) -> Result<Linear, ModelError> {
        let bias = self.bias(weight, shape.0)?;
        if self.place != Place::Trunk || self.layout == Layout::Conv1d {
            return Ok(Linear::Dense { weight: self.weight(weight, shape)?, bias });
        }
        self.checkpoint.linear(weight, bias, shape)
    }

    /// A linear layer that edits change where it lies in an edited block.
    pub fn editable(&mut self, weight: &str, shape: (usize, usize)) -> Result<Linear, ModelError> {
        if self.place != Place::Edited {
            return self.linear(weight, shape);
        }
        let (d_out, d_in) = shape;
        let matrix = self.editable.len();
        let base = self.weight(weight, shape)?;
        self.base.push(base);
        self.editable.push(EditableMatrix { name: weight.to_owned(), d_out, d_in });
        Ok(Linear::Editable { matrix, bias: self.bias(weight, d_out)? })
    }

    /// `NAME.weight` and `NAME.bias` of a layer norm.
    pub fn layer_norm(&mut self, name: &str, size: usize, eps: f64) -> Result<Norm, ModelError> {
        Ok(Norm::Layer {
            weight: self.tensor(&format!("{name}.weight"), &[size])?,
            bias: self.tensor(&format!("{name}.bias"), &[size])?,
            eps,
        })
    }

    /// `NAME.weight` of an RMS norm.
    pub fn rms_norm(&mut self, name: &str, size: usize, eps: f64) -> Result<Norm, ModelError> {
        Ok(Norm::Rms { weight: self.tensor(&format!("{name}.weight"), &[size])?, eps })
    }

    /// The output head `lm_head`, with its bias if it has one; `tied`, it is the embedding of that name.
    pub fn head(&mut self, tied: Option<(&str, &Tensor)>, shape: (usize, usize)) -> Result<Head, ModelError> {
        let name = tied.map_or("lm_head.weight", |(embedding, _)| embedding);
        let bias = if tied.is_some() { None } else { self.bias(name, shape.0)? };
        // One copy in memory where f32 is what decoding uses too.
        let (dense, decode) = match (self.checkpoint.linear(name, None, shape)?, tied) {
            (Linear::Dense { bias, .. }, Some((_, weight))) => {
                (weight.clone(), Linear::Dense { weight: weight.clone(), bias })
            }
            (Linear::Dense { weight, bias }, None) => (weight.clone(), Linear::Dense { weight, bias }),
            (decode, Some((_, weight))) => (weight.clone(), decode),
            (decode, None) => (self.checkpoint.dense(name, &[shape.0, shape.1])?, decode),
        };
        Ok(Head { dense, decode, bias })
    }

    /// The editable matrices that were read, and their weights.
    pub fn finish(self) -> (Vec<EditableMatrix>, DenseMatrices) {
        (self.editable, DenseMatrices::new(self.base))
    }
}

/// An output head, twice.
pub struct Head {
    /// f32, for gradients: `[vocabulary, hidden]`.
    pub dense: Tensor,
    /// In the file's precision.
    pub decode: Linear,
    pub bias: Option<Tensor>,
}

impl Head {
    /// In f32, differentiable in its input: `[n, hidden]` -> `[n, vocabulary]`.
    pub fn forward(&self, rows: &Tensor) -> candle_core::Result<Tensor> {
        self.biased(frozen_matmul(rows, &self.dense)?)
    }

    /// At decoding speed; the best few logits, and so the argmax, are those of [`Head::forward`].
    pub fn decode(&self, rows: &Tensor) -> candle_core::Result<Tensor> {
        let logits = self.decode.forward(rows, &NoEditable)?;
        match (&self.decode, &self.bias) {
            (Linear::Quantized { .. }, None) => rescore(&logits, rows, &self.dense),
            _ => self.biased(logits),
        }
    }

    fn biased(&self, logits: Tensor) -> candle_core::Result<Tensor> {
        match &self.bias {
            Some(bias) => logits.broadcast_add(bias),
            None => Ok(logits),
        }
    }
}

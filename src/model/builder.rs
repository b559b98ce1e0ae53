//! Puts networks together from a checkpoint: below the tail in the file's own precision, in the tail dense, so that
//! gradients pass, with its MLP matrices editable.

use candle_core::{Device, Tensor};

use super::{
    DenseMatrices, EditableMatrix, ModelError,
    layers::{Linear, Norm},
    load::Checkpoint,
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

/// Reads layers by Hugging Face's names, and collects the editable matrices as they are read.
pub struct Builder<'a> {
    checkpoint: &'a mut dyn Checkpoint,
    layout: Layout,
    in_tail: bool,
    editable: Vec<EditableMatrix>,
    base: Vec<Tensor>,
}

impl<'a> Builder<'a> {
    /// Begins below the tail.
    pub fn new(checkpoint: &'a mut dyn Checkpoint, layout: Layout) -> Self {
        Self { checkpoint, layout, in_tail: false, editable: Vec::new(), base: Vec::new() }
    }

    /// Where the tensors go.
    pub fn device(&self) -> Device {
        self.checkpoint.device().clone()
    }

    /// Whether the layers that are read from now on are the tail's.
    pub fn set_tail(&mut self, in_tail: bool) {
        self.in_tail = in_tail;
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
        if self.in_tail || self.layout == Layout::Conv1d {
            return Ok(Linear::Dense { weight: self.weight(weight, shape)?, bias });
        }
        self.checkpoint.linear(weight, bias, shape)
    }

    /// A linear layer that edits change where it lies in the tail.
    pub fn editable(&mut self, weight: &str, shape: (usize, usize)) -> Result<Linear, ModelError> {
        if !self.in_tail {
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
        let (name, bias) = match tied {
            Some((embedding, _)) => (embedding, None),
            None => ("lm_head.weight", self.bias("lm_head.weight", shape.0)?),
        };
        let decode = self.checkpoint.linear(name, bias.clone(), shape)?;
        // One copy in memory where f32 is what decoding uses too.
        Ok(match (decode, tied) {
            (Linear::Dense { bias, .. }, Some((_, weight))) => {
                Head { decode: Linear::Dense { weight: weight.clone(), bias }, dense: weight.clone(), bias: None }
            }
            (Linear::Dense { weight, bias }, None) => {
                Head { decode: Linear::Dense { weight: weight.clone(), bias: bias.clone() }, dense: weight, bias }
            }
            (decode, Some((_, weight))) => Head { decode, dense: weight.clone(), bias },
            (decode, None) => Head { decode, dense: self.checkpoint.dense(name, &[shape.0, shape.1])?, bias },
        })
    }

    /// The editable matrices that were read, and their weights.
    pub fn finish(self) -> (Vec<EditableMatrix>, DenseMatrices) {
        (self.editable, DenseMatrices::new(self.base))
    }
}

/// An output head, twice.
pub struct Head {
    /// f32, for gradients.
    pub dense: Tensor,
    /// In the file's precision, bias included.
    pub decode: Linear,
    pub bias: Option<Tensor>,
}

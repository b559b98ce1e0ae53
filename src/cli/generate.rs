//! `amend generate`: options to request, answer to text.

use clap::Args;

use super::Output;
use crate::{
    config::{PlaceArgs, values},
    generation::{GenerateRequest, GenerateResponse, Message},
};

/// What to continue, how, and where.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// The text and the sampling.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Text")]
pub struct TextArgs {
    /// Text to continue; required
    #[arg(long, env = "AMEND_PROMPT", value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,

    /// Hand the prompt over as a user's message in the model's chat template
    #[arg(long, env = "AMEND_CHAT")]
    pub chat: bool,

    /// Most tokens to generate
    #[arg(long, env = "AMEND_MAX_TOKENS", value_name = "N", default_value = "64")]
    pub max_tokens: usize,

    /// 0 takes the most probable token; above, tokens are sampled, the more evenly the higher
    #[arg(long, env = "AMEND_TEMPERATURE", value_name = "T", default_value = "0", value_parser = temperature)]
    pub temperature: f64,

    /// Sample from the smallest set of tokens whose probability reaches this, 0 to 1; default: from all
    #[arg(long, env = "AMEND_TOP_P", value_name = "P", value_parser = values::probability)]
    pub top_p: Option<f32>,

    /// Sample from this many most probable tokens; default: from all
    #[arg(long, env = "AMEND_TOP_K", value_name = "N")]
    pub top_k: Option<usize>,

    /// Text at which to stop; repeat it for more; default: none
    #[arg(long, env = "AMEND_STOP", value_name = "TEXT")]
    pub stop: Vec<String>,

    /// Seed of the sampler
    #[arg(long, env = "AMEND_SEED", value_name = "N", default_value = "0")]
    pub seed: u64,

    /// Version that answers, 0 for the base model; default: the newest
    #[arg(long, env = "AMEND_VERSION", value_name = "N")]
    pub version: Option<u64>,

    /// A second version that answers the same; default: none
    #[arg(long, env = "AMEND_COMPARE_TO", value_name = "N")]
    pub compare_to: Option<u64>,

    /// Print the text alone, or the whole answer as JSON
    #[arg(long, env = "AMEND_OUTPUT", value_name = "FORMAT", value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

fn temperature(text: &str) -> Result<f64, String> {
    values::non_negative(text).map(f64::from)
}

impl TextArgs {
    /// The request that these options make.
    pub fn request(&self) -> GenerateRequest {
        let message = || vec![Message { role: "user".to_owned(), content: self.prompt.clone() }];
        GenerateRequest {
            prompt: (!self.chat).then(|| self.prompt.clone()),
            messages: self.chat.then(message),
            max_tokens: Some(self.max_tokens),
            temperature: Some(self.temperature),
            top_p: self.top_p.map(f64::from),
            top_k: self.top_k,
            stop: self.stop.clone(),
            seed: Some(self.seed),
            version: self.version,
            compare_to: self.compare_to,
            ..GenerateRequest::default()
        }
    }

    /// The answer as it is printed.
    pub fn render(&self, response: &GenerateResponse) -> serde_json::Result<String> {
        match (self.output, &response.compared) {
            (Output::Json, _) => serde_json::to_string_pretty(response),
            (Output::Text, None) => Ok(response.text.clone()),
            (Output::Text, Some(other)) => Ok(format!(
                "version {}: {}\nversion {}: {}",
                response.version, response.text, other.version, other.text
            )),
        }
    }
}

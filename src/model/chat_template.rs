//! A conversation as the text that the model was trained on, by the Jinja template in the model's files.
//!
//! The environment is the one that Hugging Face `transformers` gives a template: `trim_blocks`, `lstrip_blocks`, Python's
//! string and dictionary methods, `raise_exception`, `strftime_now`, `tojson` as `json.dumps` writes it, `bos_token`,
//! `eos_token`, and `tools` and `documents` set to none.

use std::{fmt, path::Path};

use candle_core::quantized::gguf_file::Content;
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value, context,
    value::{Kwargs, ValueKind},
};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::{
    ModelError,
    tokenizer::{Tokenizer, read_json, read_text},
};

/// The name under which an environment holds its only template.
const NAME: &str = "chat";
/// The key of GGUF metadata that holds the template.
const GGUF_KEY: &str = "tokenizer.chat_template";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`, or what else the template knows.
    pub role: String,
    pub content: String,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are what `bos_token` and `eos_token` stand for in it.
    ///
    /// # Errors
    /// [`ModelError::Template`] with the line where it does not parse.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|e| template_error(&e))?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The template in a GGUF file's metadata; none if it has none.
    pub fn from_gguf(content: &Content, tokenizer: &Tokenizer) -> Result<Option<Self>, ModelError> {
        let Some(value) = content.metadata.get(GGUF_KEY) else { return Ok(None) };
        let source = value.to_string().map_err(|e| ModelError::Template(format!("{GGUF_KEY}: {e}")))?;
        Self::new(source, &tokenizer.bos_text(), &tokenizer.eos_text()).map(Some)
    }

    /// The template of a Hugging Face folder: `chat_template.jinja`, else the entry in `tokenizer_config.json`; none if it
    /// has none.
    pub fn from_folder(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>, ModelError> {
        let source = match read_text(folder, "chat_template.jinja")? {
            Some(source) => Some(source),
            None => read_json(folder, "tokenizer_config.json")?.and_then(|config| configured(&config["chat_template"])),
        };
        source.map(|source| Self::new(&source, &tokenizer.bos_text(), &tokenizer.eos_text())).transpose()
    }

    /// The conversation as text; with `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// # Errors
    /// [`ModelError::Template`] where the template refuses the conversation (roles that do not alternate, say).
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, ModelError> {
        let context = context! {
            messages,
            add_generation_prompt,
            bos_token => self.bos,
            eos_token => self.eos,
            tools => Value::from(()),
            documents => Value::from(()),
        };
        let template = self.environment.get_template(NAME).map_err(|e| template_error(&e))?;
        template.render(context).map_err(|e| template_error(&e))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("bos", &self.bos).field("eos", &self.eos).finish_non_exhaustive()
    }
}

/// The entry `chat_template`: a string, or a list of named ones of which `default` is meant.
fn configured(entry: &serde_json::Value) -> Option<String> {
    let named = || entry.as_array()?.iter().find(|template| template["name"] == "default")?["template"].as_str();
    entry.as_str().or_else(named).map(str::to_owned)
}

/// What the template itself said, where it called `raise_exception`; else the engine's message with the line.
fn template_error(error: &Error) -> ModelError {
    let message = match (error.kind(), error.detail(), error.line()) {
        (ErrorKind::InvalidOperation, Some(detail), _) if detail.starts_with(RAISED) => {
            detail[RAISED.len()..].to_owned()
        }
        (kind, Some(detail), Some(line)) => format!("{kind}: {detail} (line {line})"),
        (kind, Some(detail), None) => format!("{kind}: {detail}"),
        (kind, None, Some(line)) => format!("{kind} (line {line})"),
        (kind, None, None) => kind.to_string(),
    };
    ModelError::Template(message)
}

/// Marks a message as the template's own.
const RAISED: &str = "raised by the template: ";

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

/// The local time, formatted by C's conversion specifiers.
fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
}

/// `json.dumps(value, ensure_ascii=False, indent=...)`.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands keyword arguments over by value")]
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<Value> = kwargs.get("indent")?;
    let indent = indent.filter(|v| v.kind() != ValueKind::None).map(usize::try_from).transpose()?;
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut json = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut json, PythonFormatter)).map_err(failed)?,
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut json, formatter)).map_err(failed)?;
        }
    }
    let json = String::from_utf8(json).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(json))
}

/// Python's separators, `", "` and `": "`.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokenizer::testing::smollm2;

    fn messages(list: &[(&str, &str)]) -> Vec<ChatMessage> {
        list.iter().map(|&(role, content)| ChatMessage { role: role.into(), content: content.into() }).collect()
    }

    fn render(source: &str, list: &[(&str, &str)], prompt: bool) -> String {
        ChatTemplate::new(source, "<s>", "</s>").unwrap().render(&messages(list), prompt).unwrap()
    }

    const TALK: &[(&str, &str)] =
        &[("system", " Be brief. "), ("user", "Hi & <b>"), ("assistant", "Hello."), ("user", "Bye\n")];

    #[test]
    fn smollm2s_own_template_adds_its_system_prompt_where_there_is_none() {
        let Some(content) = smollm2() else { return };
        let tokenizer = Tokenizer::from_gguf(&content).unwrap();
        let template = ChatTemplate::from_gguf(&content, &tokenizer).unwrap().unwrap();
        let system =
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";
        let user = "<|im_start|>user\nHi<|im_end|>\n";
        let talk = messages(&[("user", "Hi")]);
        assert_eq!(template.render(&talk, false).unwrap(), format!("{system}{user}"));
        assert_eq!(template.render(&talk, true).unwrap(), format!("{system}{user}<|im_start|>assistant\n"));
        let expected = "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi & <b><|im_end|>\n\
                        <|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye\n<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(template.render(&messages(TALK), true).unwrap(), expected);
        assert_eq!(template.render(&[], true).unwrap(), "<|im_start|>assistant\n");
    }

    /// In the manner of Llama 3: content trimmed, BOS before the first message.
    const LLAMA3: &str = r"{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('Unknown role ' + message.role) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
";

    #[test]
    fn a_template_like_llama3s() {
        let header = |role| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
        let expected = format!(
            "<s>{}Be brief.<|eot_id|>{}Hi & <b><|eot_id|>{}Hello.<|eot_id|>{}Bye<|eot_id|>{}",
            header("system"),
            header("user"),
            header("assistant"),
            header("user"),
            header("assistant")
        );
        assert_eq!(render(LLAMA3, TALK, true), expected);
    }

    /// In the manner of Qwen2.5: tools asked for first, a default system prompt, attribute access, namespaces.
    const QWEN25: &str = r"{%- if tools %}
    {{- '# Tools' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(last='') %}
{%- for message in messages %}
    {%- if (message.role == 'user') or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
        {%- set ns.last = message.role %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and ns.last != 'assistant' %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
";

    #[test]
    fn a_template_like_qwen25s() {
        let expected =
            "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(QWEN25, &[("user", "Hi")], true), expected);
        let expected = "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi & <b><|im_end|>\n\
                        <|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye\n<|im_end|>\n";
        assert_eq!(render(QWEN25, TALK, false), expected);
    }

    #[test]
    fn a_template_refuses_in_its_own_words() {
        let source = "{% if messages[0].role != 'user' %}{{ raise_exception('Roles must alternate') }}{% endif %}";
        let error = ChatTemplate::new(source, "", "").unwrap().render(&messages(TALK), false).unwrap_err();
        assert_eq!(error.to_string(), "chat template: Roles must alternate");
        let error = ChatTemplate::new("a\n{% if %}", "", "").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn python_idioms_work() {
        let talk = &[("user", " a b ")];
        let cases = [
            ("{{ messages[0].content.strip().split(' ')[-1] }}", "b"),
            ("{{ messages[0]['content'].replace(' ', '_') }}", "_a_b_"),
            ("{{ messages[0].get('name', 'none') }}", "none"),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": " a b "}"#),
            ("{{ {'k': ['é', '<', 1]} | tojson }}", r#"{"k": ["é", "<", 1]}"#),
            ("{{ [1, 2] | tojson(indent=2) }}", "[\n  1,\n  2\n]"),
            ("{% if tools is not none %}tools{% endif %}{{ eos_token }}", "</s>"),
            ("{% for m in messages %}{% if loop.index0 == 0 %}{% continue %}{% endif %}x{% endfor %}.", "."),
            ("{{ messages[1:] | length }}{{ strftime_now('%Y') | length }}\n", "04"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source, talk, false), expected, "{source}");
        }
    }

    #[test]
    fn a_folders_template_is_found() {
        let entry = serde_json::json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(configured(&entry).as_deref(), Some("d"));
        assert_eq!(configured(&serde_json::json!("s")).as_deref(), Some("s"));
        assert_eq!(configured(&serde_json::Value::Null), None);
    }
}

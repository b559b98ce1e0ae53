//! Reading a body's JSON with objects as objects alone. What serde derives takes an array for a struct as well, field by
//! field in order: `[0]` would be a rollback to version 0.

use serde::{
    Deserializer,
    de::{
        Error as _, IntoDeserializer, Unexpected, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Value};

/// A value whose structs must be objects, on every level.
pub(super) struct Strict(pub Value);

impl<'de> Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Self));
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Value::Object(members) => {
                let mut members = MapDeserializer::new(members.into_iter().map(|(name, value)| (name, Self(value))));
                let value = visitor.visit_map(&mut members)?;
                members.end().map(|()| value)
            }
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl IntoDeserializer<'_, Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::writer::{EditRequest, Guard, GuardLimits};

    #[test]
    fn an_array_is_no_struct_on_any_level() {
        let read = |value| EditRequest::deserialize(Strict(value)).map_err(|error| error.to_string());
        let whole = json!({"prompt": "p", "target": "t", "paraphrases": ["q"], "locality": [{"prompt": "l"}],
            "guard": {"max_kl": 1}, "note": null});
        let edit = read(whole).unwrap();
        assert_eq!(edit.guard, Guard::Limits(GuardLimits { max_kl: Some(1.0), ..GuardLimits::default() }));
        assert_eq!((edit.paraphrases.len(), edit.locality.len(), edit.note), (1, 1, None));
        assert_eq!(read(json!({"prompt": "p", "target": "t", "guard": null})).unwrap().guard, Guard::Off);
        for array in [
            json!(["p", "t"]),
            json!({"prompt": "p", "target": "t", "locality": [["l"]]}),
            json!({"prompt": "p", "target": "t", "guard": []}),
        ] {
            assert!(read(array).unwrap_err().contains("invalid type: sequence"));
        }
    }
}

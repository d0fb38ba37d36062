//! A value with its place in the file. A type of our own around the YAML reader's, so that it has a schema.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

/// A value that remembers its line and column, for checks made after parsing; see [`ConfigError::at`].
///
/// [`ConfigError::at`]: super::ConfigError::at
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Line and column of where it stands, counted from 1, in characters; where it is an alias, of the alias.
    pub(super) place: Option<(u64, u64)>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Located<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, defined: _ } = Spanned::deserialize(deserializer)?;
        let place = (referenced.line() > 0).then(|| (referenced.line(), referenced.column()));
        Ok(Self { value, place })
    }
}

/// In a file it is nothing but its value.
impl<T: JsonSchema> JsonSchema for Located<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

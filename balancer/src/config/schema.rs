//! The keys of a route in the configuration file, as they stand there. What they come to is [`super::routes`]' business.
//!
//! Values that are checked later keep their place, so that an error can name line and column.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use super::Span;
use crate::picker::Strategy;

/// One of `routes`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteFile {
    pub name: Option<Spanned<String>>,
    #[serde(rename = "match")]
    pub rules: Option<MatchFile>,
    pub service: Option<Spanned<String>>,
    pub version: Option<Spanned<String>>,
    pub split: Option<Spanned<Vec<ShareFile>>>,
    pub redirect: Option<Spanned<RedirectFile>>,
    pub respond: Option<Spanned<RespondFile>>,
    pub rewrite: Option<Spanned<RewriteFile>>,
    pub request_headers: Option<EditsFile>,
    pub response_headers: Option<EditsFile>,
    pub strategy: Option<Spanned<Strategy>>,
    pub timeouts: Option<Spanned<TimeoutsFile>>,
    pub retry: Option<Spanned<RetryFile>>,
    pub rate_limit: Option<Spanned<RateLimitFile>>,
}

/// `match`.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct MatchFile {
    pub host: Option<Spanned<Many<String>>>,
    pub path: Option<Spanned<Many<PathFile>>>,
    pub method: Option<Spanned<Many<String>>>,
    pub headers: Option<Spanned<BTreeMap<String, ValueFile>>>,
    pub query: Option<Spanned<BTreeMap<String, ValueFile>>>,
}

/// `path`: a text is a prefix.
#[derive(Debug)]
pub enum PathFile {
    Exact(String),
    Prefix(String),
    Regex(String),
}

/// A value of `headers` or `query`: a text is exact.
#[derive(Debug)]
pub enum ValueFile {
    Exact(String),
    Regex(String),
    Present,
}

/// One of `split`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct ShareFile {
    pub service: Spanned<String>,
    pub version: Option<Spanned<String>>,
    pub weight: Option<Spanned<u32>>,
}

/// `redirect`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct RedirectFile {
    pub to: Option<Spanned<String>>,
    pub scheme: Option<Spanned<String>>,
    pub host: Option<Spanned<String>>,
    pub path: Option<Spanned<String>>,
    pub prefix: Option<Spanned<String>>,
    pub status: Option<Spanned<u16>>,
}

/// `respond`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RespondFile {
    pub status: Spanned<u16>,
    pub body: Option<String>,
    pub content_type: Option<Spanned<String>>,
}

/// `rewrite`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RewriteFile {
    pub strip_prefix: Option<bool>,
    pub replace_prefix: Option<Spanned<String>>,
    pub host: Option<Spanned<String>>,
}

/// `requestHeaders` and `responseHeaders`.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct EditsFile {
    pub set: Option<Spanned<BTreeMap<String, Text>>>,
    pub add: Option<Spanned<BTreeMap<String, Text>>>,
    pub remove: Option<Spanned<Many<String>>>,
}

/// `timeouts`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TimeoutsFile {
    pub response: Option<Spanned<Span>>,
    pub body_idle: Option<Spanned<Span>>,
    pub total: Option<Spanned<Span>>,
}

/// `retry`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct RetryFile {
    pub attempts: Option<Spanned<u8>>,
    pub on: Option<Many<RetryOn>>,
}

/// What may be tried again.
#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    Connect,
    Stale,
    Broke,
}

/// `rateLimit`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct RateLimitFile {
    pub requests: Spanned<u32>,
    pub per: Option<Spanned<Span>>,
    pub burst: Option<Spanned<u32>>,
    pub by: Option<Spanned<ByFile>>,
    pub header: Option<Spanned<String>>,
}

/// What a rate limit counts together.
#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ByFile {
    Client,
    Route,
    Header,
}

/// One value, or a list of them.
#[derive(Debug)]
pub struct Many<T>(pub Vec<T>);

/// A scalar as text: `1` and `true` are texts where a text is wanted.
#[derive(Debug)]
pub struct Text(pub String);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = Many<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list of them")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Many<T>, E> {
                let text: StrDeserializer<'_, E> = text.into_deserializer();
                Ok(Many(vec![T::deserialize(text)?]))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Many<T>, A::Error> {
                Ok(Many(vec![T::deserialize(MapAccessDeserializer::new(map))?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Many<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(Many(all))
            }
        }

        deserializer.deserialize_any(Items(PhantomData))
    }
}

/// A text, or a block with one of a few keys.
struct TextOr<T>(&'static str, PhantomData<T>);

impl<'de, T> Visitor<'de> for TextOr<T>
where
    T: Deserialize<'de> + From<String>,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Ok(T::from(text.to_owned()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<T, E> {
        Ok(T::from(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
        Ok(T::from(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        Ok(T::from(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
        Err(E::custom(format!("{value} can be written in many ways; put it into quotes")))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Text {
        Text(text)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        deserializer.deserialize_any(TextOr("a text", PhantomData))
    }
}

/// The keys of a path that is no text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PathKeys {
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<String>,
}

impl<'de> Deserialize<'de> for PathFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PathFile, D::Error> {
        struct PathVisitor;

        impl<'de> Visitor<'de> for PathVisitor {
            type Value = PathFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or a block with exact, prefix or regex")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PathFile, E> {
                Ok(PathFile::Prefix(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PathFile, A::Error> {
                let keys = PathKeys::deserialize(MapAccessDeserializer::new(map))?;
                match (keys.exact, keys.prefix, keys.regex) {
                    (Some(path), None, None) => Ok(PathFile::Exact(path)),
                    (None, Some(path), None) => Ok(PathFile::Prefix(path)),
                    (None, None, Some(pattern)) => Ok(PathFile::Regex(pattern)),
                    _ => Err(A::Error::custom("a path has one of exact, prefix and regex")),
                }
            }
        }

        deserializer.deserialize_any(PathVisitor)
    }
}

/// The keys of a value that is no text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueKeys {
    exact: Option<Text>,
    regex: Option<String>,
    present: Option<bool>,
}

impl<'de> Deserialize<'de> for ValueFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ValueFile, D::Error> {
        struct ValueVisitor;

        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = ValueFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a block with exact, regex or present")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ValueFile, E> {
                Ok(ValueFile::Exact(text.to_owned()))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<ValueFile, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<ValueFile, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<ValueFile, E> {
                self.visit_str(&value.to_string())
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<ValueFile, E> {
                Err(E::custom(format!("{value} can be written in many ways; put it into quotes")))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ValueFile, A::Error> {
                let keys = ValueKeys::deserialize(MapAccessDeserializer::new(map))?;
                match (keys.exact, keys.regex, keys.present) {
                    (Some(Text(text)), None, None) => Ok(ValueFile::Exact(text)),
                    (None, Some(pattern), None) => Ok(ValueFile::Regex(pattern)),
                    (None, None, Some(true)) => Ok(ValueFile::Present),
                    _ => Err(A::Error::custom("a value has one of exact, regex and present: true")),
                }
            }
        }

        deserializer.deserialize_any(ValueVisitor)
    }
}

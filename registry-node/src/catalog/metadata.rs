//! The free pairs of an instance, in one sorted slice: most have none or a few, and there are a hundred thousand
//! instances with several incarnations each in memory. A map would take half a kilobyte for one pair.

use std::fmt;

use compact_str::CompactString;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};

/// Pairs by key, each key once. Serialized as a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(Box<[(CompactString, CompactString)]>);

impl Metadata {
    /// The pairs, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Of several pairs of one key the last one counts.
impl<K: Into<CompactString>, V: Into<CompactString>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let pairs = pairs.into_iter().map(|(key, value)| (key.into(), value.into()));
        let mut pairs: Vec<(CompactString, CompactString)> = pairs.collect();
        if !pairs.is_sorted_by(|(a, _), (b, _)| a < b) {
            // The sort is stable and the first of a run is kept: reversed, that is the last.
            pairs.reverse();
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            pairs.dedup_by(|(a, _), (b, _)| a == b);
        }
        Self(pairs.into_boxed_slice())
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("pairs of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                // What is said of the length is not believed: the pairs themselves are read.
                let mut pairs = Vec::with_capacity(map.size_hint().unwrap_or(0).min(64));
                while let Some(pair) = map.next_entry::<CompactString, CompactString>()? {
                    pairs.push(pair);
                }
                Ok(pairs.into_iter().collect())
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::envelope;

    proptest! {
        #[test]
        fn is_the_map_of_the_same_pairs(pairs in prop::collection::vec(("[a-c]{0,2}", "[x-z]{0,2}"), 0..8)) {
            let metadata: Metadata = pairs.iter().cloned().collect();
            let map: BTreeMap<String, String> = pairs.into_iter().collect();
            prop_assert_eq!(metadata.len(), map.len());
            prop_assert!(metadata.iter().eq(map.iter().map(|(key, value)| (key.as_str(), value.as_str()))));
            let bytes = envelope::encode(&map);
            prop_assert_eq!(&envelope::encode(&metadata), &bytes);
            prop_assert_eq!(envelope::decode::<Metadata>(&bytes), Ok(metadata));
        }
    }
}

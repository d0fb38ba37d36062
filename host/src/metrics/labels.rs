//! The labels of a sample, which samples of several families may share.

use std::{cmp::Ordering, ops::Deref, sync::Arc};

/// Names and values, in the order they are written.
#[derive(Debug, Clone, Eq)]
pub struct Labels(Arc<[(&'static str, String)]>);

impl Labels {
    /// Copies the values.
    pub fn new(labels: &[(&'static str, &str)]) -> Self {
        labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
    }
}

impl FromIterator<(&'static str, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (&'static str, String)>>(labels: I) -> Self {
        Self(labels.into_iter().collect())
    }
}

impl Deref for Labels {
    type Target = [(&'static str, String)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl PartialEq for Labels {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_what_they_say_and_not_where_they_lie() {
        let (a, same) = (Labels::new(&[("name", "a")]), Labels::new(&[("name", "a")]));
        assert_eq!((&a, &a), (&a.clone(), &same));
        assert!(a < Labels::new(&[("name", "b")]) && a < Labels::new(&[("name", "a"), ("type", "t")]));
        assert_eq!(a.cmp(&same), Ordering::Equal);
        assert!(Labels::new(&[]).is_empty());
    }
}

//! Families from one look to the next: those that say the same again are not written again.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Block, Family};

/// What was told last, each family in a block of its own.
#[derive(Debug, Default)]
pub struct Renewed(Mutex<Vec<(Family, Arc<Block>)>>);

impl Renewed {
    /// The families as blocks: of one that equals the last one of its name, that one's.
    pub fn blocks(&self, families: Vec<Family>) -> Vec<Arc<Block>> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *last);
        for family in families {
            let same = before.iter().find(|(told, _)| *told == family).map(|(_, block)| Arc::clone(block));
            let block = same.unwrap_or_else(|| Arc::new(Block::new(vec![family.clone()])));
            last.push((family, block));
        }
        last.iter().map(|(_, block)| Arc::clone(block)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_something_else_is_written_again() {
        let renewed = Renewed::default();
        let look = |free: f64| {
            renewed.blocks(vec![
                Family::gauge("size", "Size.").with(&[("m", "/")], 10.0),
                Family::gauge("free", "Free.").with(&[("m", "/")], free),
            ])
        };
        let (first, second, third) = (look(5.0), look(4.0), look(4.0));
        assert!(Arc::ptr_eq(&first[0], &second[0]) && Arc::ptr_eq(&first[0], &third[0]));
        assert!(!Arc::ptr_eq(&first[1], &second[1]) && Arc::ptr_eq(&second[1], &third[1]));
        assert_eq!(second[1].read_back(), [Family::gauge("free", "Free.").with(&[("m", "/")], 4.0)]);
        assert!(renewed.blocks(vec![]).is_empty(), "what is not told any more is not published");
    }
}

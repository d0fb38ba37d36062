//! The units as expectations are judged by them: all that systemd has in memory, published or not, as `systemctl` shows
//! them, and the watched ones that rest.

use std::sync::Arc;

use evenkeel_host::systemd::{self, Details};

use super::{picture::Picture, selection::Role};
use crate::evidence::Unit;

/// All of them.
pub(super) type Evidence = Arc<[Unit]>;

/// What was put together last, and of which state of the picture.
#[derive(Debug, Default)]
pub(super) struct Units(Option<((u64, u64), Evidence)>);

impl Units {
    /// Put together anew only when something has been announced or found since.
    pub(super) fn of(&mut self, picture: &Picture, resting: &[(Arc<systemd::Unit>, Role)]) -> Evidence {
        let edition = (picture.clock(), picture.version());
        if let Some((of, units)) = &self.0
            && *of == edition
        {
            return Arc::clone(units);
        }
        let in_memory = picture.units().filter(|known| known.is_known());
        let in_memory = in_memory.map(|known| as_evidence(&known.unit, known.role, known.details.as_deref()));
        let resting = resting.iter().map(|(unit, role)| as_evidence(unit, Some(*role), None));
        let units: Evidence = in_memory.chain(resting).collect();
        self.0 = Some((edition, Arc::clone(&units)));
        units
    }
}

fn as_evidence(unit: &Arc<systemd::Unit>, role: Option<Role>, details: Option<&Details>) -> Unit {
    let role = role.unwrap_or_default();
    Unit {
        unit: Arc::clone(unit),
        restarts: details.and_then(|details| details.service.as_ref()).map(|service| service.n_restarts),
        is_watched: role.is_watched,
        may_be_missing: role.may_be_missing,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::collectors::systemd::families::tests::{picture_of, unit};

    #[test]
    fn units_of_every_kind_count_and_are_put_together_once() {
        let mut picture = picture_of(vec![
            unit("web.service", "loaded", "active", "running"),
            unit("srv.mount", "loaded", "failed", "failed"),
        ]);
        let watched = Role { is_watched: true, may_be_missing: true };
        let resting = [(Arc::new(unit("gone.service", "not-found", "inactive", "dead")), watched)];
        let mut kept = Units::default();
        let units = kept.of(&picture, &resting);
        let mut names: Vec<_> = units.iter().map(|unit| (&*unit.unit.name, unit.may_be_missing)).collect();
        names.sort_unstable();
        assert_eq!(names, [("gone.service", true), ("srv.mount", false), ("web.service", false)]);
        assert!(Arc::ptr_eq(&units, &kept.of(&picture, &resting)));
        let since = picture.begin_list();
        picture.take_list(vec![unit("srv.mount", "loaded", "active", "mounted")], since, Instant::now());
        assert_eq!(kept.of(&picture, &[]).len(), 1);
    }
}

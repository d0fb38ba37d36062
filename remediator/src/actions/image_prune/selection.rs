//! Which images may go. Pure: in doubt an image stays, and every one that stays has a reason.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fmt,
    time::{Duration, SystemTime},
};

use evenkeel_host::{
    config::PromDuration,
    docker::{Image, Listed},
};

use crate::pattern::Pattern;

/// What stays although nothing uses it.
#[derive(Debug, Clone)]
pub(in crate::actions) struct Keep {
    /// What came here less long ago.
    pub(super) min_age: Duration,
    /// What has such a name.
    pub(super) patterns: Vec<Pattern>,
    /// So many of each repository, the newest.
    pub(super) last: usize,
    /// What was built here and cannot be pulled again.
    pub(super) locally_built: bool,
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no container uses, that came here {} ago", PromDuration::new(self.min_age))?;
        write!(f, ", is not of the last {} of its repository", self.last)?;
        if self.locally_built {
            write!(f, ", can be pulled again")?;
        }
        if !self.patterns.is_empty() {
            let names: Vec<String> = self.patterns.iter().map(ToString::to_string).collect();
            write!(f, " and is not named {}", names.join(", "))?;
        }
        Ok(())
    }
}

/// What goes and why the others stay.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// What goes, the one that came first before the others.
    pub(super) deleted: Vec<Image>,
    /// How many stay for each reason.
    pub(super) kept: BTreeMap<&'static str, usize>,
}

impl Selection {
    /// For people.
    pub(super) fn kept_because(&self) -> String {
        let reasons: Vec<String> =
            self.kept.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        if reasons.is_empty() { "there are no images".to_owned() } else { reasons.join(", ") }
    }
}

/// Sorts images into those that may go and those that stay. `came`: when each got its newest name here.
pub(super) fn select(
    images: Vec<Image>,
    containers: &[Listed],
    came: &HashMap<String, Option<SystemTime>>,
    keep: &Keep,
    is_containerd: bool,
    now: SystemTime,
) -> Selection {
    let newest = newest_of_each(&images, came, keep.last);
    let mut selection = Selection::default();
    let mut going = Vec::new();
    for image in images {
        let came_here = came.get(&image.id).copied().flatten();
        let reason = if is_used(&image, containers) {
            Some("in use")
        } else if names(&image).iter().any(|name| keep.patterns.iter().any(|pattern| pattern.matches(name))) {
            Some("kept by name")
        } else if newest.contains(&image.id) {
            Some("among the last of their repository")
        } else if keep.locally_built && !is_pullable(&image, is_containerd) {
            Some("not to be pulled again")
        } else if !image.tags.iter().all(|tag| is_plain(tag)) {
            Some("oddly named")
        } else {
            match came_here.and_then(|came| now.duration_since(came).ok()) {
                Some(age) if age >= keep.min_age => None,
                Some(_) => Some("too young"),
                None => Some("of unknown age"),
            }
        };
        match reason {
            Some(reason) => *selection.kept.entry(reason).or_default() += 1,
            None => going.push((came_here, image)),
        }
    }
    going.sort_by(|(a_came, a), (b_came, b)| a_came.cmp(b_came).then_with(|| a.id.cmp(&b.id)));
    selection.deleted = going.into_iter().map(|(_, image)| image).collect();
    selection
}

/// By any container, also a stopped one; by id, and by name for engines whose containers know another id.
fn is_used(image: &Image, containers: &[Listed]) -> bool {
    containers.iter().any(|container| {
        container.image_id == image.id
            || image
                .id
                .strip_prefix("sha256:")
                .is_some_and(|hex| !container.image.is_empty() && hex.starts_with(&container.image))
            || image.tags.iter().chain(&image.digests).any(|name| same_name(name, &container.image))
    })
}

/// `web` is `web:latest`.
fn same_name(name: &str, used: &str) -> bool {
    name == used || name.strip_suffix(":latest") == Some(used)
}

/// The containerd store has a digest for everything, so there nothing tells what can be pulled.
fn is_pullable(image: &Image, is_containerd: bool) -> bool {
    !image.digests.is_empty() && !is_containerd
}

/// What a name of an image may hold; it becomes a part of a path.
fn is_plain(tag: &str) -> bool {
    tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte)) && !tag.contains("..")
}

/// The ids of the newest images of every repository.
fn newest_of_each(images: &[Image], came: &HashMap<String, Option<SystemTime>>, last: usize) -> Vec<String> {
    let mut repositories: BTreeMap<String, Vec<&Image>> = BTreeMap::new();
    for image in images {
        for name in names(image) {
            let of_it = repositories.entry(repository(&name).to_owned()).or_default();
            if !of_it.iter().any(|known| known.id == image.id) {
                of_it.push(image);
            }
        }
    }
    let mut newest = Vec::new();
    for of_it in repositories.values_mut() {
        // Built last is newest, also where it was pulled earlier.
        of_it.sort_by_key(|image| Reverse((image.created, came.get(&image.id).copied().flatten())));
        newest.extend(of_it.iter().take(last).map(|image| image.id.clone()));
    }
    newest
}

/// What an image is known by; one that was pulled by its digest has no tag, and is shown as `web:<none>`.
fn names(image: &Image) -> Vec<String> {
    if !image.tags.is_empty() {
        return image.tags.clone();
    }
    let repositories = image.digests.iter().filter_map(|digest| digest.split_once('@'));
    repositories.map(|(repository, _)| format!("{repository}:<none>")).collect()
}

/// `localhost:5000/shop/web:1` → `localhost:5000/shop/web`.
fn repository(tag: &str) -> &str {
    match tag.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => tag,
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_host::docker::{Health, State};

    use super::*;

    const DAY: u64 = 86_400;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000)
    }

    fn days_ago(days: u64) -> SystemTime {
        now() - Duration::from_secs(days * DAY)
    }

    /// An image that came `days` ago and can be pulled again.
    fn image(id: &str, tags: &[&str], days: u64) -> (Image, SystemTime) {
        let image = Image {
            id: format!("sha256:{id}"),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            digests: vec![format!("somewhere@sha256:{id}")],
            created: Some(days_ago(days)),
            bytes: 1000,
        };
        (image, days_ago(days))
    }

    fn container(image: &str, image_id: &str, state: State) -> Listed {
        Listed {
            id: "c".to_owned(),
            name: "c".to_owned(),
            state,
            status_text: String::new(),
            image: image.to_owned(),
            image_id: image_id.to_owned(),
            labels: BTreeMap::new(),
            created: None,
            health: Health::None,
        }
    }

    fn keep() -> Keep {
        Keep { min_age: Duration::from_secs(30 * DAY), patterns: Vec::new(), last: 0, locally_built: true }
    }

    fn deleted(images: Vec<(Image, SystemTime)>, containers: &[Listed], keep: &Keep) -> Vec<String> {
        let came = images.iter().map(|(image, came)| (image.id.clone(), Some(*came))).collect();
        let images = images.into_iter().map(|(image, _)| image).collect();
        let selection = select(images, containers, &came, keep, false, now());
        selection.deleted.into_iter().map(|image| image.id.replace("sha256:", "")).collect()
    }

    #[test]
    fn the_one_that_came_first_goes_first() {
        let images = vec![image("b", &["web:2"], 40), image("c", &["web:3"], 35), image("a", &["web:1"], 90)];
        assert_eq!(deleted(images, &[], &keep()), ["a", "b", "c"]);
    }

    #[test]
    fn what_any_container_uses_stays() {
        let images = || vec![image("a1b2c3", &["web:1", "web:latest"], 90)];
        for used in [
            container("web:1", "sha256:a1b2c3", State::Running),
            container("other-name", "sha256:a1b2c3", State::Exited),
            container("web", "sha256:another id of the same", State::Created),
            container("a1b2c3", "", State::Exited),
            container("somewhere@sha256:a1b2c3", "", State::Dead),
        ] {
            assert!(deleted(images(), std::slice::from_ref(&used), &keep()).is_empty(), "{used:?}");
        }
        let other = container("db:1", "sha256:f0", State::Running);
        assert_eq!(deleted(images(), &[other], &keep()), ["a1b2c3"]);
    }

    #[test]
    fn what_came_lately_or_nobody_knows_when_stays() {
        // Built long ago and pulled yesterday: young.
        let (mut fresh, _) = image("a", &["web:1"], 400);
        fresh.created = Some(days_ago(400));
        assert!(deleted(vec![(fresh, days_ago(1))], &[], &keep()).is_empty());
        let (unknown, _) = image("b", &["web:2"], 400);
        let selection =
            select(vec![unknown.clone()], &[], &HashMap::from([(unknown.id, None)]), &keep(), false, now());
        assert!(selection.deleted.is_empty());
        assert_eq!(selection.kept_because(), "1 of unknown age");
        // A clock that ran backwards makes nothing old.
        let (future, _) = image("c", &["web:3"], 0);
        assert!(deleted(vec![(future, now() + Duration::from_secs(DAY))], &[], &keep()).is_empty());
    }

    #[test]
    fn what_cannot_be_pulled_again_stays_unless_told_otherwise() {
        let local = || {
            let (mut local, came) = image("a", &["built-here:1"], 90);
            local.digests.clear();
            vec![(local, came)]
        };
        assert!(deleted(local(), &[], &keep()).is_empty());
        assert_eq!(deleted(local(), &[], &Keep { locally_built: false, ..keep() }), ["a"]);
        // The containerd store does not tell.
        let (pulled, came) = image("b", &["web:1"], 90);
        let came = HashMap::from([(pulled.id.clone(), Some(came))]);
        assert!(select(vec![pulled], &[], &came, &keep(), true, now()).deleted.is_empty());
    }

    #[test]
    fn kept_names_and_the_last_of_each_repository_stay() {
        let images = || {
            vec![
                image("a", &["web:1"], 90),
                image("b", &["web:2"], 80),
                image("c", &["web:3"], 70),
                image("d", &["localhost:5000/shop/db:1", "db:old"], 90),
            ]
        };
        assert_eq!(deleted(images(), &[], &Keep { last: 1, ..keep() }), ["a", "b"]);
        assert_eq!(deleted(images(), &[], &Keep { last: 2, ..keep() }), ["a"]);
        let patterns = vec!["web:*".parse().unwrap(), "db:old".parse().unwrap()];
        assert!(deleted(images(), &[], &Keep { patterns, ..keep() }).is_empty());
        let patterns = vec!["web:2".parse().unwrap()];
        assert_eq!(deleted(images(), &[], &Keep { patterns, ..keep() }), ["a", "d", "c"]);
    }

    #[test]
    fn what_was_pulled_by_its_digest_is_kept_by_its_repository() {
        let images = || {
            let (mut old, came) = image("a", &[], 90);
            old.digests = vec!["shop/web@sha256:a".to_owned()];
            vec![
                (old.clone(), came),
                (Image { id: "sha256:b".to_owned(), created: Some(days_ago(80)), ..old }, came),
            ]
        };
        assert_eq!(deleted(images(), &[], &keep()), ["a", "b"]);
        assert_eq!(deleted(images(), &[], &Keep { last: 1, ..keep() }), ["a"]);
        for pattern in ["shop/*", "shop/web:*"] {
            let patterns = vec![pattern.parse().unwrap()];
            assert!(deleted(images(), &[], &Keep { patterns, ..keep() }).is_empty(), "{pattern}");
        }
    }

    #[test]
    fn an_image_of_many_names_is_kept_by_any_of_them() {
        let images = vec![image("a", &["web:1", "web:stable"], 90)];
        assert!(
            deleted(images, &[], &Keep { patterns: vec!["*:stable".parse().unwrap()], ..keep() }).is_empty()
        );
    }

    #[test]
    fn a_name_that_would_ask_something_else_is_left_alone() {
        for name in ["../containers/x:1", "web:1?force=true", "web:1#", "w b:1"] {
            assert!(deleted(vec![image("a", &[name], 90)], &[], &keep()).is_empty(), "{name}");
        }
    }

    #[test]
    fn repositories_are_told_from_ports_and_tags() {
        assert_eq!(repository("web:1"), "web");
        assert_eq!(repository("localhost:5000/web"), "localhost:5000/web");
        assert_eq!(repository("localhost:5000/shop/web:1"), "localhost:5000/shop/web");
    }
}

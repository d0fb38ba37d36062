//! Basic authentication: names and bcrypt hashes, and the memory of what was verified.
//!
//! bcrypt is slow on purpose (50 ms at cost 10), so an outcome is remembered, and only one password is computed at a
//! time: whoever guesses never takes more than one processor.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hyper::{HeaderMap, header::AUTHORIZATION};
use ring::{hmac, rand::SystemRandom};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

/// Outcomes remembered of each kind. Wrong ones are kept apart, so that guessing forgets no right one.
const REMEMBERED: usize = 100;

/// bcrypt hashes by name.
pub(super) type Users = BTreeMap<String, String>;

/// What a request says about its sender.
pub(super) struct Login {
    name: String,
    password: Vec<u8>,
}

impl Login {
    /// From `Authorization: Basic`; `None` where there is no such header or it makes no sense.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = BASE64.decode(encoded.trim()).ok()?;
        let colon = decoded.iter().position(|byte| *byte == b':')?;
        let name = std::str::from_utf8(&decoded[..colon]).ok()?.to_owned();
        Some(Self { name, password: decoded[colon + 1..].to_vec() })
    }
}

/// Says whether logins are right. Lives as long as the server: what it remembers is bound to the hash it was verified
/// against, so that a changed password counts at once.
#[derive(Debug)]
pub(super) struct Passwords {
    /// Of this process alone: what is remembered is of no use to anybody else.
    key: hmac::Key,
    turn: Arc<Semaphore>,
    right: Mutex<Remembered>,
    wrong: Mutex<Remembered>,
}

impl Passwords {
    /// Remembers nothing yet. `None` when the system has no randomness to give.
    pub(super) fn new() -> Option<Self> {
        Some(Self {
            key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()?,
            turn: Arc::new(Semaphore::new(1)),
            right: Mutex::default(),
            wrong: Mutex::default(),
        })
    }

    /// Whether the login is one of the users'.
    pub(super) async fn accept(self: &Arc<Self>, users: &Users, login: Login) -> bool {
        let Some((hash, known)) = self.hash_for(users, &login.name) else { return false };
        let tag = self.tag(&login, hash);
        if let Some(right) = self.recall(&tag) {
            return right && known;
        }
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return false };
        // Whoever had the turn before may have asked the same.
        if let Some(right) = self.recall(&tag) {
            return right && known;
        }
        let (memory, hash) = (Arc::clone(self), hash.to_owned());
        let computed = tokio::task::spawn_blocking(move || {
            // Also where the client has gone meanwhile: its next request finds the outcome.
            let right = bcrypt::verify(&login.password, &hash).unwrap_or(false) && known;
            let kind = if right { &memory.right } else { &memory.wrong };
            kind.lock().unwrap_or_else(PoisonError::into_inner).add(tag);
            drop(turn);
            right
        });
        computed.await.unwrap_or(false)
    }

    /// The user's hash. An unknown name is given the one of some user, always the same, and never let in: it takes as
    /// long as a known one, so that the time tells no names.
    fn hash_for<'a>(&self, users: &'a Users, name: &str) -> Option<(&'a str, bool)> {
        if let Some(hash) = users.get(name) {
            return Some((hash, true));
        }
        let any = usize::from(hmac::sign(&self.key, name.as_bytes()).as_ref()[0]) % users.len().max(1);
        users.values().nth(any).map(|hash| (hash.as_str(), false))
    }

    fn tag(&self, login: &Login, hash: &str) -> Tag {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [hash.as_bytes(), login.name.as_bytes(), &login.password] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut tag = [0; 32];
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }

    fn recall(&self, tag: &Tag) -> Option<bool> {
        let holds = |kind: &Mutex<Remembered>| kind.lock().unwrap_or_else(PoisonError::into_inner).holds(tag);
        if holds(&self.right) {
            return Some(true);
        }
        holds(&self.wrong).then_some(false)
    }

    #[cfg(test)]
    fn remembered(&self) -> (usize, usize) {
        let count = |kind: &Mutex<Remembered>| kind.lock().expect("no panic").0.len();
        (count(&self.right), count(&self.wrong))
    }
}

/// A keyed digest of name, password and hash: says nothing to whoever reads the memory of this process later.
type Tag = [u8; 32];

#[derive(Debug, Default)]
struct Remembered(VecDeque<Tag>);

impl Remembered {
    fn add(&mut self, tag: Tag) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(tag);
    }

    /// Compares with all of them, whichever it is.
    fn holds(&self, tag: &Tag) -> bool {
        self.0.iter().map(|known| known.ct_eq(tag)).fold(subtle::Choice::from(0), |any, one| any | one).into()
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    /// "open sesame" at the lowest cost.
    fn users() -> Users {
        [("alice", "open sesame"), ("bob", "hunter2")]
            .map(|(name, password)| (name.to_owned(), bcrypt::hash(password, 4).expect("a hash")))
            .into()
    }

    fn login(name: &str, password: &str) -> Login {
        Login { name: name.to_owned(), password: password.into() }
    }

    #[tokio::test]
    async fn only_a_users_own_password_is_right() {
        let (passwords, users) = (Arc::new(Passwords::new().expect("randomness")), users());
        for (name, password, right) in [
            ("alice", "open sesame", true),
            ("alice", "open sesame ", false),
            ("alice", "", false),
            ("alice", "hunter2", false),
            ("Alice", "open sesame", false),
            ("", "open sesame", false),
            // Whoever's hash the unknown name is measured with: it never gets in.
            ("mallory", "open sesame", false),
            ("mallory", "hunter2", false),
            ("bob", "hunter2", true),
        ] {
            for round in ["computed", "remembered"] {
                let outcome = passwords.accept(&users, login(name, password)).await;
                assert_eq!(outcome, right, "{name}:{password} {round}");
            }
        }
        assert_eq!(passwords.remembered(), (2, 7));
        assert!(!passwords.accept(&Users::new(), login("alice", "open sesame")).await, "without users");
    }

    #[tokio::test]
    async fn a_changed_hash_forgets_the_old_password() {
        let (passwords, mut users) = (Arc::new(Passwords::new().expect("randomness")), users());
        assert!(passwords.accept(&users, login("alice", "open sesame")).await);
        users.insert("alice".to_owned(), bcrypt::hash("new", 4).expect("a hash"));
        assert!(!passwords.accept(&users, login("alice", "open sesame")).await);
        assert!(passwords.accept(&users, login("alice", "new")).await);
    }

    #[tokio::test]
    async fn guessing_is_bounded_and_pushes_no_right_password_out() {
        let (passwords, users) = (Arc::new(Passwords::new().expect("randomness")), users());
        assert!(passwords.accept(&users, login("alice", "open sesame")).await);
        for guess in 0..REMEMBERED + 5 {
            assert!(!passwords.accept(&users, login("alice", &guess.to_string())).await);
        }
        assert_eq!(passwords.remembered(), (1, REMEMBERED));
    }

    #[test]
    fn headers_are_read() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_str(value).expect("a value"));
            Login::of(&headers).map(|login| (login.name, String::from_utf8(login.password).expect("text")))
        };
        let said = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        for (value, login) in [
            ("Basic YTpi", said("a", "b")),
            ("basic YTpi ", said("a", "b")),
            ("BASIC YTpiOmM=", said("a", "b:c")),
            ("Basic Og==", said("", "")),
            ("Basic YWI=", None),
            ("Basic !", None),
            ("Basic", None),
            ("Bearer YTpi", None),
            ("", None),
            // A name that is no UTF-8.
            ("Basic /zpi", None),
        ] {
            assert_eq!(of(value), login, "{value}");
        }
        assert!(Login::of(&HeaderMap::new()).is_none());
    }
}

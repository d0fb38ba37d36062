//! What an action needs to be let do when the remediator is not root: the rows of what `generate` writes.

/// One thing that must be allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// This verb of systemd's on the target, a unit: the word that systemd gives polkit
    /// (org.freedesktop.systemd1(5), "Security"), such as `restart`.
    Unit(&'static str),
    /// Starting an instance of this root-owned template (`NAME@.service`): `RULE:TARGET`, both escaped.
    Helper(&'static str),
    /// Starting an instance of a template of the user's own: the target, escaped.
    Template(String),
    /// A call of Docker's API.
    Docker {
        /// `POST`, `DELETE`, or `GET` for what looking alone does not ask.
        method: &'static str,
        /// A regular expression for the path below the API version with its query, matched whole. `{container}` stands
        /// for the names that the rule admits.
        path: &'static str,
    },
}

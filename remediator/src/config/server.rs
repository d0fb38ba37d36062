//! Where the server listens and who is let in.

use std::path::PathBuf;

use evenkeel_host::{
    config::{ConfigError, Located, Secret},
    web::{ListenAddress, Offers, Security},
};

use super::{
    Checker,
    file::{Auth, Server},
};

/// A shorter token can be guessed.
const TOKEN_MIN: usize = 16;

/// How the server is reached.
#[derive(Debug, Clone)]
pub struct Access {
    /// Where to listen; not asked when systemd passes the sockets.
    pub listen: Vec<ListenAddress>,
    /// The sockets come from a socket unit.
    pub systemd_socket: bool,
    /// TLS, logins and client certificates of the web configuration. A start takes it; what changes later it reads
    /// by itself.
    pub security: Security,
    /// The web configuration's file.
    pub web_config_file: Option<PathBuf>,
    /// Any of these lets a sender in.
    pub tokens: Vec<Secret>,
    /// The file of the first token, for those who are to send it.
    pub token_file: Option<PathBuf>,
    /// Any of these lets a person order over HTTP; none where that is only done on this host.
    pub write_tokens: Vec<Secret>,
    /// `auth: none` was asked for: everyone is let in.
    pub open: bool,
}

impl Access {
    /// Why sockets that leave this machine cannot be served, with the cure.
    ///
    /// # Errors
    /// When something that is needed beyond loopback is missing.
    pub fn beyond_loopback(&self) -> Result<(), &'static str> {
        match () {
            () if self.open => Err(
                "`auth: none` is for loopback and unix sockets only: name files with tokens under `bearer_token_files` or users in `web_config_file`, which also needs tls_server_config",
            ),
            () if !self.security.offers().tls => Err(
                "no token or password may cross a network in clear: name a file with tls_server_config under `web_config_file`, or listen on 127.0.0.1",
            ),
            () => Ok(()),
        }
    }
}

impl Checker {
    /// Everything under `server`.
    pub(super) fn server(&self, server: &Server) -> Result<Access, ConfigError> {
        let security = self.security(server.web_config_file.as_ref())?;
        let access = Access {
            listen: self.listen(server)?,
            systemd_socket: server.systemd_socket,
            tokens: self.tokens("server.bearer_token_files", &server.bearer_token_files)?,
            write_tokens: self.tokens("server.write_token_files", &server.write_token_files)?,
            token_file: server.bearer_token_files.first().map(|path| self.base.join(&path.value)),
            web_config_file: server.web_config_file.as_ref().map(|file| self.base.join(&file.value)),
            open: server.auth.as_ref().is_some_and(|auth| auth.value == Auth::None),
            security,
        };
        for (token, place) in access.write_tokens.iter().zip(&server.write_token_files) {
            if access.tokens.contains(token) {
                return Err(self.at(
                    place,
                    "`server.write_token_files`: this token also stands in `bearer_token_files`: whoever sends alerts must not be able to approve of what they lead to, write another one",
                ));
            }
        }
        self.somebody_is_asked(server, &access)?;
        for (place, address) in server.listen.iter().zip(&access.listen) {
            if !address.is_loopback() {
                access.beyond_loopback().map_err(|why| {
                    self.at(place, format!("`server.listen`: {address} is not loopback, and {why}"))
                })?;
            }
        }
        Ok(access)
    }

    fn security(&self, file: Option<&Located<PathBuf>>) -> Result<Security, ConfigError> {
        let Some(file) = file else { return Ok(Security::default()) };
        let security = Security::load(&self.base.join(&file.value))?;
        if security.offers().rate_limit {
            let message = "`server.web_config_file`: its rate_limit would refuse alerts, and Alertmanager sends them again much later: remove it, the remediator bounds what it takes by itself";
            return Err(self.at(file, message));
        }
        Ok(security)
    }

    fn tokens(&self, key: &str, files: &[Located<PathBuf>]) -> Result<Vec<Secret>, ConfigError> {
        let mut tokens = Vec::new();
        for path in files {
            let token = self.secret(key, path)?;
            if token.expose().len() < TOKEN_MIN {
                let message = format!(
                    "`{key}`: the token in {} is shorter than {TOKEN_MIN} characters: write a longer random one into it",
                    path.value.display()
                );
                return Err(self.at(path, message));
            }
            tokens.push(token);
        }
        Ok(tokens)
    }

    /// Either somebody is let in by what they show, or everyone by `auth: none`, and not both.
    fn somebody_is_asked(&self, server: &Server, access: &Access) -> Result<(), ConfigError> {
        let Offers { users, client_certificates, .. } = access.security.offers();
        let asked = [
            ("`bearer_token_files`", !access.tokens.is_empty()),
            ("basic_auth_users in `web_config_file`", users),
            ("client certificates in `web_config_file`", client_certificates),
        ];
        let asked = asked.into_iter().find_map(|(what, given)| given.then_some(what));
        match (&server.auth, asked) {
            (Some(auth), Some(what)) if access.open => Err(self.at(
                auth,
                format!("`server`: both `auth: none` and {what} are given: remove one of the two"),
            )),
            (_, None) if !access.open => Err(ConfigError::new(
                &self.origin,
                "`server`: nobody is authenticated: name files with tokens under `bearer_token_files`, users or a client CA in `web_config_file`, or say `auth: none` on a loopback address",
            )),
            _ => Ok(()),
        }
    }

    fn listen(&self, server: &Server) -> Result<Vec<ListenAddress>, ConfigError> {
        if let Some(address) = server.listen.first().filter(|_| server.systemd_socket) {
            let message = "`server`: both `listen` and `systemd_socket` are given: remove one of the two";
            return Err(self.at(address, message));
        }
        let mut listen = Vec::new();
        for address in &server.listen {
            let parsed = address.value.parse::<ListenAddress>();
            listen.push(parsed.map_err(|error| self.at(address, format!("`server.listen`: {error}")))?);
        }
        if listen.is_empty() {
            listen.push(ListenAddress::Tcp("127.0.0.1:19848".to_owned()));
        }
        Ok(listen)
    }
}

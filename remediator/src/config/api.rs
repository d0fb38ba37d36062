//! The servers that are asked, checked: addresses, what lets us in, whom we trust.

use std::path::PathBuf;

use evenkeel_host::config::{ConfigError, Located};
use reqwest::{Certificate, Identity, Url};

use super::{
    Checker,
    file::{ApiFile, GateFile, OnError, PrometheusFile},
};
use crate::api::{
    Api, Login,
    prometheus::{Gate, Prometheus},
};

/// The job of the shipped prometheus.yml.
const JOB: &str = "evenkeel-exporter";
/// An expression's length at most, in bytes: it travels in a URL.
const PROMQL_MAX: usize = 4000;

impl Checker {
    pub(super) fn alertmanager(&self, file: Option<&Located<ApiFile>>) -> Result<Option<Api>, ConfigError> {
        file.map(|file| self.api("alertmanager", file, &file.value)).transpose()
    }

    pub(super) fn prometheus(
        &self,
        file: Option<&Located<PrometheusFile>>,
    ) -> Result<Option<Prometheus>, ConfigError> {
        let Some(file) = file else { return Ok(None) };
        let job = file.value.job.clone().unwrap_or_else(|| JOB.to_owned());
        let jobs = file.value.jobs.clone();
        Ok(Some(Prometheus { api: self.api("prometheus", file, &file.value.api())?, job, jobs }))
    }

    fn api<T>(&self, key: &str, place: &Located<T>, file: &ApiFile) -> Result<Api, ConfigError> {
        let url = Url::parse(&file.url.value)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.query().is_none());
        let Some(url) = url.filter(|url| url.username().is_empty() && url.password().is_none()) else {
            // Without the URL itself: it may hold a password.
            let message = format!(
                "`{key}.url`: this is no plain http or https URL: write it as http://127.0.0.1:9093, and a password into `basic_auth`"
            );
            return Err(self.at(&file.url, message));
        };
        let login = match (&file.bearer_token_file, &file.basic_auth) {
            (Some(_), Some(basic)) => {
                let message = format!(
                    "`{key}`: both `bearer_token_file` and `basic_auth` are given: remove one of the two"
                );
                return Err(self.at(basic, message));
            }
            (Some(token), None) => Login::Bearer(self.secret(&format!("{key}.bearer_token_file"), token)?),
            (None, Some(basic)) => {
                let key = format!("{key}.basic_auth.password_file");
                let password = self.secret(&key, &basic.value.password_file)?;
                Login::Basic(basic.value.username.clone(), password)
            }
            (None, None) => Login::None,
        };
        let tls = file.tls.as_ref();
        let authorities = match tls.and_then(|tls| tls.value.ca_file.as_ref()) {
            Some(ca) => {
                let pem = self.secret(&format!("{key}.tls.ca_file"), ca)?;
                let found = Certificate::from_pem_bundle(pem.expose().as_bytes()).unwrap_or_default();
                if found.is_empty() {
                    let message =
                        format!("`{key}.tls.ca_file`: there is no certificate in it: name a PEM file");
                    return Err(self.at(ca, message));
                }
                found
            }
            None => Vec::new(),
        };
        let identity = tls.map(|tls| self.identity(key, &tls.value.cert_file, &tls.value.key_file, tls));
        let identity = identity.transpose()?.flatten();
        Api::new(url, login, &authorities, identity.as_ref())
            .map_err(|error| self.at(place, format!("`{key}`: no client can be made of it: {error}")))
    }

    fn identity<T>(
        &self,
        key: &str,
        certificate: &Option<Located<PathBuf>>,
        private: &Option<Located<PathBuf>>,
        place: &Located<T>,
    ) -> Result<Option<Identity>, ConfigError> {
        let (certificate, private) = match (certificate, private) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(private)) => (certificate, private),
            _ => {
                let message =
                    format!("`{key}.tls`: `cert_file` and `key_file` go together: give both or neither");
                return Err(self.at(place, message));
            }
        };
        let pem = format!(
            "{}\n{}\n",
            self.secret(&format!("{key}.tls.cert_file"), certificate)?.expose(),
            self.secret(&format!("{key}.tls.key_file"), private)?.expose()
        );
        let identity = Identity::from_pem(pem.as_bytes());
        let wrong = format!(
            "`{key}.tls`: `cert_file` and `key_file` are no certificate with its key: name two PEM files"
        );
        identity.map(Some).map_err(|_| self.at(place, wrong))
    }

    /// The conditions of one rule.
    pub(super) fn conditions(
        &self,
        rule: &str,
        files: &[Located<GateFile>],
    ) -> Result<Vec<Gate>, ConfigError> {
        let gates = files.iter().map(|file| {
            let GateFile { promql, on_error } = &file.value;
            let promql = promql.trim().to_owned();
            if promql.is_empty() || promql.len() > PROMQL_MAX {
                let message = format!(
                    "rule `{rule}`: `gates.promql` is empty or longer than {PROMQL_MAX} characters: write an expression, such as 'up{{job=\"db\"}} == 1'"
                );
                return Err(self.at(file, message));
            }
            Ok(Gate { promql, open_on_error: *on_error == OnError::Open })
        });
        gates.collect()
    }
}

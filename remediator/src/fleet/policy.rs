//! Whether the fleet's Redis throws keys away when it is full: then budgets, leases and waiting alerts are among them.

use redis::Value;

use super::{fault::Fault, link::Link};

/// The policy by which it does, if it does.
pub(super) async fn evicts(link: &Link) -> Result<Option<String>, Fault> {
    let ask = move |mut redis| async move {
        Ok(redis::cmd("INFO").arg("memory").query_async::<Value>(&mut redis).await?)
    };
    match link.ask(ask).await? {
        Value::BulkString(info) => Ok(evicting(&String::from_utf8_lossy(&info))),
        _ => Err(Fault::nonsense("no text where one belongs")),
    }
}

/// Says so in the log.
pub(super) fn tell(policy: Option<&str>) {
    if let Some(policy) = policy {
        tracing::warn!(
            policy,
            "the fleet's Redis throws keys away when it is full, budgets among them: set maxmemory-policy noeviction"
        );
    }
}

fn evicting(info: &str) -> Option<String> {
    let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"))?.trim();
    (policy != "noeviction").then(|| policy.chars().take(40).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_policy_that_throws_keys_away_is_told() {
        assert_eq!(evicting("# Memory\r\nmaxmemory_policy:noeviction\r\n"), None);
        assert_eq!(evicting("maxmemory_policy:allkeys-lru\r\n").as_deref(), Some("allkeys-lru"));
        assert_eq!(evicting("maxmemory_policy:volatile-ttl\r\n").as_deref(), Some("volatile-ttl"));
        assert_eq!(evicting("nothing"), None);
    }
}

//! The servers that may be reached through PTTH, the same for all that share the Redis.

use super::script;
use crate::ptth::ServerName;
use crate::store::error::Error;
use crate::store::redis::lock::lock;
use crate::store::redis::process::{Process, Redis};
use crate::store::redis::reply::{Reply, Values};
use crate::store::redis::script::Script;
use crate::store::requests::{PtthServer, PtthServers};
use std::sync::Arc;

static SERVERS: Script = Script::new(include_str!("servers.lua"));
static REGISTER: Script = Script::promise(include_str!("register.lua"));
static UNREGISTER: Script = Script::promise(include_str!("unregister.lua"));
static PURGE: Script = script!("purge.lua");

impl Process {
    fn registry(&self) -> String {
        format!("{}:ptth", self.prefix)
    }
}

impl Redis {
    pub async fn ptth_servers(&self) -> Result<Arc<PtthServers>, Error> {
        let process = &self.process;
        let (known, servers) = lock(&process.ptth_servers).clone();
        let answer = SERVERS.run(&process.servers, &[&process.registry()], &[known.as_bytes()]).await?;
        let mut answer = Values::of(answer)?;
        let last = answer.text()?;
        if last == known {
            return Ok(servers);
        }
        let (mut all, mut servers) = (answer.values()?, PtthServers::new());
        while all.left() > 0 {
            let (name, known) = (all.text()?, all.bytes()?);
            if let Some(name) = ServerName::new(&name) {
                servers.insert(name, serde_json::from_slice(&known).map_err(Error::BadRegistry)?);
            }
        }
        let servers = Arc::new(servers);
        *lock(&process.ptth_servers) = (last, servers.clone());
        Ok(servers)
    }

    pub async fn register_ptth_server(&self, name: &ServerName, server: &PtthServer) -> Result<bool, Error> {
        let text = serde_json::to_vec(server).map_err(std::io::Error::other)?;
        let process = &self.process;
        let is_new = REGISTER.run(&process.servers, &[&process.registry()], &[name.as_str().as_bytes(), &text]).await?;
        Ok(is_new == Reply::Integer(1))
    }

    pub async fn remove_ptth_server(&self, name: &ServerName) -> Result<bool, Error> {
        let process = &self.process;
        let was_there = UNREGISTER.run(&process.servers, &[&process.registry()], &[name.as_str().as_bytes()]).await?;
        // Where that fails, what waits finds it removed when it looks.
        process.requests(name).run(&PURGE, &[]).await?;
        Ok(was_there == Reply::Integer(1))
    }
}

//! Every setting: its name, its default, its unit.
//!
//! A setting is an environment variable, or a line `KEY=VALUE` in `settings.conf` inside the data folder; the
//! environment wins. The file is there because shared hosts that run CGI programs through suexec remove all but a few
//! environment variables, so `SetEnv` in an `.htaccess` never arrives. For the same reason a `settings.conf` beside the
//! program may say where the data folder is, and nothing else: a web server may publish that file.
//!
//! A line that cannot have an effect is an error. What has none although it could be meant well (a name that no setting
//! has, a file that Windows has renamed) is an [`Oddity`], of which the owner is told.

mod given;
#[cfg(feature = "redis")]
pub mod redis;

use crate::syntax::is_token;
use given::{Assignments, beside_program, in_environment, mistaken_files, program_folder, read_file, unreadable};
pub use given::{Oddity, SettingError};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// HS256 wants a key as long as its hash (RFC 7518, 3.2).
const SHORTEST_SECRET: usize = 32;

/// The settings of one relay. [`Settings::default`] is a relay that nobody has configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `RELAY_DATA_DIR` (in the environment, or in the `settings.conf` beside the program): where everything is kept.
    pub data_dir: PathBuf,
    /// `RELAY_STORE`: the Redis, or Valkey, in which things are kept that several machines share. Unset, or empty, all is kept
    /// in the data folder.
    #[cfg(feature = "redis")]
    pub redis: Option<redis::Address>,
    /// `JWT_SECRET`: what tokens are signed with. Unset, the relay makes a random one and keeps it in the data folder.
    pub jwt_secret: Option<String>,
    /// `RELAY_PREFIX`: begins the host ids this relay chooses, `P-1234`.
    pub prefix: Option<String>,
    /// `RELAY_ALLOWED_ORIGINS`, separated by commas: the web origins that may use the relay. Empty: all of them (`*`).
    pub allowed_origins: Vec<String>,
    /// `RELAY_MAX_BODY`: the largest message in bytes.
    pub max_body: u64,
    /// `RELAY_MAX_QUEUE`: how many bytes may wait for one recipient.
    pub max_queue: u64,
    /// `RELAY_MAX_TOPIC`: how many bytes of what a host has sent to its clients may be alive.
    pub max_topic: u64,
    /// `RELAY_MAX_DATA`: how many bytes all logs together may take, counted in pieces of 64 KiB.
    pub max_data: u64,
    /// `RELAY_MAX_CLIENTS`: how many clients one host may have.
    pub max_clients: u64,
    /// `RELAY_MAX_HOSTS`: how many hosts may be registered.
    pub max_hosts: u64,
    /// `RELAY_BUS_MESSAGE`: the largest message on a bus, in bytes.
    pub bus_message: u64,
    /// `RELAY_MAX_BUSES`: how many buses there may be.
    pub max_buses: u64,
    /// `RELAY_MAX_CONNECTIONS`: how many connections `serve` has at once.
    pub max_connections: u64,
    /// `RELAY_MESSAGE_LIFETIME` in seconds: how long a message is kept for a recipient who is away.
    pub message_lifetime: Duration,
    /// `RELAY_SESSION_LIFETIME` in seconds: how long a session outlives its stream.
    pub session_lifetime: Duration,
    /// `RELAY_BUS_LIFETIME` in seconds: how long a bus, and a user registered with it, outlives its last use.
    pub bus_lifetime: Duration,
    /// `RELAY_KEEP_ALIVE` in seconds: how often an idle stream says so.
    pub keep_alive: Duration,
    /// `RELAY_POLL_TICK` in milliseconds: how long a stream sleeps at most before it looks for messages itself. Unset, it
    /// is 20 ms on file systems that several machines may write to, and for a web server's stream that was opened or given
    /// something within the last second; elsewhere it is left to the wake-ups.
    pub poll_tick: Option<Duration>,
    /// `RELAY_GRACE` in seconds: how long an ended stream still counts as present. At most the session lifetime.
    pub grace: Duration,
    /// `RELAY_MAX_PIPES`: how many sessions of two parties with a pipe each way there may be.
    pub max_pipes: u64,
    /// `RELAY_PIPE_TIMEOUT` in seconds: how long each of the two waits for the other, unless it says so itself.
    pub pipe_timeout: Duration,
    /// `RELAY_PIPE_LIFETIME` in seconds: how long a session of two parties outlives its last use.
    pub pipe_lifetime: Duration,
    /// `RELAY_WS_HANDLER`: the program that is started for each WebSocket, and its arguments, separated by spaces. `echo` is
    /// built in. Empty: what arrives is broadcast.
    pub ws_handler: Vec<String>,
    /// `RELAY_WS_PROTOCOLS`, separated by commas: the subprotocols that a WebSocket may speak, if its client offers one of
    /// them and the handler chooses none.
    pub ws_protocols: Vec<String>,
    /// `RELAY_MAX_HANDLERS`: how many such programs `serve` has running at once.
    pub max_handlers: u64,
    /// `RELAY_WS_LOOP` in seconds (or `WEBSOCKET_SELECT_TIMEOUT` in microseconds): how often a handler's `loop` is called.
    /// Unset, it is called with the keep-alive.
    pub ws_loop: Option<Duration>,
    /// `WEBSOCKET_XHR_PIPE_FILE`: the named pipe from which `serve` reads messages for the channel without a name.
    pub ws_pipe: Option<PathBuf>,
    /// `WEBSOCKET_LISTENING_ADDRESS` and `WEBSOCKET_LISTENING_PORT`: where `serve` listens unless `--listen` says it.
    pub listen: Option<String>,
    /// `RELAY_TRUSTED_PROXIES`: the proxies that are believed when they say for whom they speak.
    pub trusted_proxies: TrustedProxies,
    /// What is odd about these settings.
    pub oddities: Vec<Oddity>,
}

/// The reverse proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// Those with an address.
    pub addresses: Vec<IpAddr>,
    /// `unix`: whoever comes through `serve`'s UNIX socket.
    pub unix: bool,
}

impl TrustedProxies {
    /// Whether a connection from there is a proxy's; `None` is a UNIX socket.
    #[must_use]
    pub fn include(&self, remote: Option<IpAddr>) -> bool {
        remote.map_or(self.unix, |address| self.addresses.contains(&address))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            #[cfg(feature = "redis")]
            redis: None,
            jwt_secret: None,
            prefix: None,
            allowed_origins: Vec::new(),
            max_body: 1 << 20,
            max_queue: 8 << 20,
            max_topic: 64 << 20,
            max_data: 1 << 30,
            max_clients: 1_000,
            max_hosts: 10_000,
            bus_message: 10_240,
            max_buses: 1_000,
            max_connections: 10_000,
            message_lifetime: Duration::from_secs(60),
            session_lifetime: Duration::from_secs(60),
            bus_lifetime: Duration::from_secs(86_400),
            keep_alive: Duration::from_secs(5),
            poll_tick: None,
            grace: Duration::ZERO,
            max_pipes: 1_000,
            pipe_timeout: Duration::from_secs(30),
            pipe_lifetime: Duration::from_secs(3600),
            ws_handler: Vec::new(),
            ws_protocols: Vec::new(),
            max_handlers: 200,
            ws_loop: None,
            ws_pipe: None,
            listen: None,
            trusted_proxies: TrustedProxies::default(),
            oddities: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads the environment and the settings file of the data folder: `data_dir` if it is given, else the one that the
    /// environment names, else the one that the file beside the program names, else `default_data_dir`, which is told the
    /// program's folder.
    ///
    /// # Errors
    /// The first setting that cannot be read.
    pub fn read(
        data_dir: Option<PathBuf>,
        default_data_dir: impl FnOnce(&Path) -> PathBuf,
    ) -> Result<Self, SettingError> {
        let data_dir = match data_dir.or_else(in_environment) {
            Some(data_dir) => data_dir,
            None => beside_program(default_data_dir)?,
        };
        let text = read_file(&data_dir)?;
        let given = Assignments::read(std::env::vars_os(), &text)?;
        given.refuse_data_dir()?;
        let mut settings = Self::from_lookup(data_dir, |key| given.get(key))?;
        settings.oddities.extend(given.without_effect());
        Ok(settings)
    }

    /// Everything that is odd, the names of files included, which are not looked at for each request.
    #[must_use]
    pub fn all_oddities(&self) -> Vec<Oddity> {
        let files = [(self.data_dir.as_path(), "in the data folder"), (&program_folder(), "beside the program")];
        let mistaken = files.into_iter().flat_map(|(folder, place)| mistaken_files(folder, place));
        self.oddities.iter().cloned().chain(mistaken).collect()
    }

    fn from_lookup(
        data_dir: PathBuf,
        get: impl Fn(&str) -> Result<Option<String>, SettingError>,
    ) -> Result<Self, SettingError> {
        let default = Self::default();
        #[cfg(not(feature = "redis"))]
        if get("RELAY_STORE")?.is_some_and(|url| !url.is_empty()) {
            // Whoever means a Redis must not be given a folder: on several machines nobody would find the others.
            return Err(unreadable("RELAY_STORE", "this program can use no Redis"));
        }
        let mut settings = Self {
            data_dir,
            #[cfg(feature = "redis")]
            redis: redis_address(&get)?,
            jwt_secret: secret(get("JWT_SECRET")?)?,
            prefix: prefix(get("RELAY_PREFIX")?)?,
            allowed_origins: origins(get("RELAY_ALLOWED_ORIGINS")?)?,
            max_body: whole(&get, "RELAY_MAX_BODY", default.max_body)?,
            max_queue: whole(&get, "RELAY_MAX_QUEUE", default.max_queue)?,
            max_topic: whole(&get, "RELAY_MAX_TOPIC", default.max_topic)?,
            max_data: whole(&get, "RELAY_MAX_DATA", default.max_data)?,
            max_clients: whole(&get, "RELAY_MAX_CLIENTS", default.max_clients)?,
            max_hosts: whole(&get, "RELAY_MAX_HOSTS", default.max_hosts)?,
            bus_message: whole(&get, "RELAY_BUS_MESSAGE", default.bus_message)?,
            max_buses: whole(&get, "RELAY_MAX_BUSES", default.max_buses)?,
            max_connections: whole(&get, "RELAY_MAX_CONNECTIONS", default.max_connections)?,
            message_lifetime: positive_time(&get, "RELAY_MESSAGE_LIFETIME", 1.0, default.message_lifetime)?,
            session_lifetime: positive_time(&get, "RELAY_SESSION_LIFETIME", 1.0, default.session_lifetime)?,
            bus_lifetime: positive_time(&get, "RELAY_BUS_LIFETIME", 1.0, default.bus_lifetime)?,
            keep_alive: positive_time(&get, "RELAY_KEEP_ALIVE", 1.0, default.keep_alive)?,
            poll_tick: optional_time(&get, "RELAY_POLL_TICK", 0.001)?,
            grace: time(&get, "RELAY_GRACE", 1.0, default.grace)?,
            max_pipes: whole(&get, "RELAY_MAX_PIPES", default.max_pipes)?,
            pipe_timeout: positive_time(&get, "RELAY_PIPE_TIMEOUT", 1.0, default.pipe_timeout)?,
            pipe_lifetime: positive_time(&get, "RELAY_PIPE_LIFETIME", 1.0, default.pipe_lifetime)?,
            ws_handler: get("RELAY_WS_HANDLER")?.unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
            ws_protocols: protocols(get("RELAY_WS_PROTOCOLS")?)?,
            max_handlers: whole(&get, "RELAY_MAX_HANDLERS", default.max_handlers)?,
            ws_loop: match optional_time(&get, "RELAY_WS_LOOP", 1.0)? {
                None => optional_time(&get, "WEBSOCKET_SELECT_TIMEOUT", 1e-6)?,
                time => time,
            },
            ws_pipe: get("WEBSOCKET_XHR_PIPE_FILE")?.filter(|path| !path.is_empty()).map(PathBuf::from),
            listen: listen(get("WEBSOCKET_LISTENING_ADDRESS")?, get("WEBSOCKET_LISTENING_PORT")?),
            trusted_proxies: proxies(get("RELAY_TRUSTED_PROXIES")?)?,
            oddities: Vec::new(),
        };
        settings.judge()?;
        Ok(settings)
    }

    /// Looks at settings that can be read, but fit neither each other nor their purpose.
    fn judge(&mut self) -> Result<(), SettingError> {
        if self.grace > self.session_lifetime {
            return Err(unreadable("RELAY_GRACE", "it must not be longer than RELAY_SESSION_LIFETIME"));
        }
        if self.jwt_secret.as_ref().is_some_and(|secret| secret.len() < SHORTEST_SECRET) {
            let sentence = "JWT_SECRET is shorter than 32 bytes: it can be guessed, and tokens forged with it.";
            let cure =
                "Take a longer one, such as `openssl rand -hex 32` prints; or none, and the relay makes its own.";
            self.oddities.push(Oddity::new(sentence, cure));
        }
        Ok(())
    }
}

#[cfg(feature = "redis")]
fn redis_address(get: Lookup) -> Result<Option<redis::Address>, SettingError> {
    let Some(url) = get("RELAY_STORE")?.filter(|url| !url.is_empty()) else { return Ok(None) };
    let replicas = whole(get, "RELAY_REDIS_REPLICAS", 0)?;
    let max_data = Some(whole(get, "RELAY_MAX_DATA", Settings::default().max_data)?);
    let mut address = redis::Address { replicas, max_data, ..redis::Address::parse(&url)? };
    if let (Some(trust), Some(file)) = (&mut address.tls, get("RELAY_REDIS_CA")?.filter(|file| !file.is_empty())) {
        *trust = redis::Trust::File(file.into());
    }
    Ok(Some(address))
}

type Lookup<'a> = &'a dyn Fn(&str) -> Result<Option<String>, SettingError>;

fn whole(get: Lookup, key: &str, default: u64) -> Result<u64, SettingError> {
    match get(key)? {
        None => Ok(default),
        // The upper end keeps sums of limits far away from 64 bits.
        Some(text) => match text.parse() {
            Ok(number) if (1..=1 << 40).contains(&number) => Ok(number),
            _ => Err(unreadable(key, "it must be a whole number from 1 to 1099511627776")),
        },
    }
}

fn time(get: Lookup, key: &str, unit: f64, default: Duration) -> Result<Duration, SettingError> {
    let Some(text) = get(key)? else { return Ok(default) };
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1e8).contains(&number) => Ok(Duration::from_secs_f64(number * unit)),
        _ => Err(unreadable(key, "it must be a number from 0 to 100000000, such as 5 or 0.5")),
    }
}

fn positive_time(get: Lookup, key: &str, unit: f64, default: Duration) -> Result<Duration, SettingError> {
    match time(get, key, unit, default)? {
        short if short < Duration::from_millis(1) => Err(unreadable(key, "it must be at least a millisecond")),
        duration => Ok(duration),
    }
}

fn optional_time(get: Lookup, key: &str, unit: f64) -> Result<Option<Duration>, SettingError> {
    get(key)?.map(|_| positive_time(get, key, unit, Duration::ZERO)).transpose()
}

fn secret(text: Option<String>) -> Result<Option<String>, SettingError> {
    match text {
        Some(secret) if secret.is_empty() => {
            Err(unreadable("JWT_SECRET", "it is set but empty; remove it, or give it a long random text"))
        }
        secret => Ok(secret),
    }
}

fn prefix(text: Option<String>) -> Result<Option<String>, SettingError> {
    match text.filter(|prefix| !prefix.is_empty()) {
        Some(prefix) if prefix.len() > 64 || prefix.chars().any(char::is_control) => {
            Err(unreadable("RELAY_PREFIX", "it must be at most 64 bytes without control characters"))
        }
        prefix => Ok(prefix),
    }
}

fn origins(list: Option<String>) -> Result<Vec<String>, SettingError> {
    let list = list.unwrap_or_default();
    let origins: Vec<_> = list.split(',').map(str::trim).filter(|origin| !origin.is_empty()).collect();
    if origins.contains(&"*") {
        return Ok(Vec::new());
    }
    // An origin is scheme://host[:port] (RFC 6454, 6.2); one with a path or a space would silently never match.
    let plausible = |origin: &&str| {
        origin.split_once("://").is_some_and(|(scheme, host)| {
            !scheme.is_empty() && !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
        })
    };
    if !origins.iter().all(plausible) {
        return Err(unreadable(
            "RELAY_ALLOWED_ORIGINS",
            "it must be * or a list such as https://example.com,http://localhost:3000",
        ));
    }
    Ok(origins.into_iter().map(str::to_owned).collect())
}

fn protocols(list: Option<String>) -> Result<Vec<String>, SettingError> {
    let list = list.unwrap_or_default();
    let protocols = list.split(',').map(str::trim).filter(|protocol| !protocol.is_empty());
    let checked = protocols.map(|protocol| is_token(protocol).then(|| protocol.to_owned()));
    let wanted = "it must be a list of names without spaces, such as chat.v2,chat.v1";
    checked.collect::<Option<_>>().ok_or_else(|| unreadable("RELAY_WS_PROTOCOLS", wanted))
}

/// What `--listen` would say. Whoever listens there says whether it can be understood.
fn listen(address: Option<String>, port: Option<String>) -> Option<String> {
    let port = port.filter(|port| !port.is_empty())?;
    let address = address.filter(|address| !address.is_empty()).unwrap_or_else(|| "localhost".to_owned());
    Some(match address.as_str() {
        "localhost" => format!("127.0.0.1:{port}"),
        v6 if v6.contains(':') && !v6.starts_with('[') => format!("[{v6}]:{port}"),
        other => format!("{other}:{port}"),
    })
}

fn proxies(list: Option<String>) -> Result<TrustedProxies, SettingError> {
    let mut proxies = TrustedProxies::default();
    for item in list.unwrap_or_default().split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match item.parse::<IpAddr>() {
            Ok(address) => proxies.addresses.push(address.to_canonical()),
            Err(_) if item == "unix" => proxies.unix = true,
            Err(_) => {
                return Err(unreadable("RELAY_TRUSTED_PROXIES", "it must be a list such as 127.0.0.1,::1,unix"));
            }
        }
    }
    Ok(proxies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn from(pairs: &[(&str, &str)]) -> Result<Settings, SettingError> {
        Settings::from_lookup(PathBuf::from("data"), |key| {
            Ok(pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned()))
        })
    }

    #[test]
    fn nothing_set_is_the_default() {
        assert_eq!(from(&[]).unwrap(), Settings::default());
    }

    #[test]
    fn values_are_read_in_their_units() {
        let settings = from(&[
            ("RELAY_KEEP_ALIVE", "0.5"),
            ("RELAY_POLL_TICK", "10"),
            ("RELAY_MAX_BODY", "7"),
            ("RELAY_ALLOWED_ORIGINS", "https://a.example, http://b.example:8080"),
            ("RELAY_TRUSTED_PROXIES", "::ffff:10.0.0.1, unix"),
            ("RELAY_WS_PROTOCOLS", "chat.v2, chat"),
        ])
        .unwrap();
        assert!(settings.trusted_proxies.include(Some([10, 0, 0, 1].into())) && settings.trusted_proxies.include(None));
        assert!(!settings.trusted_proxies.include(Some([10, 0, 0, 2].into())));
        assert_eq!(settings.keep_alive, Duration::from_millis(500));
        assert_eq!(settings.poll_tick, Some(Duration::from_millis(10)));
        assert_eq!(settings.max_body, 7);
        assert_eq!(settings.ws_protocols, ["chat.v2", "chat"]);
        assert_eq!(settings.allowed_origins, ["https://a.example", "http://b.example:8080"]);
    }

    #[test]
    fn a_value_that_cannot_be_read_is_an_error_that_names_it() {
        for (key, value) in [
            ("RELAY_MAX_BODY", "1MiB"),
            ("RELAY_MAX_BODY", "-1"),
            ("RELAY_MAX_HOSTS", "0"),
            ("RELAY_KEEP_ALIVE", "0"),
            ("RELAY_KEEP_ALIVE", "NaN"),
            ("RELAY_POLL_TICK", "inf"),
            ("RELAY_GRACE", "61"),
            ("RELAY_ALLOWED_ORIGINS", "example.com"),
            ("RELAY_TRUSTED_PROXIES", "proxy.example.org"),
            ("RELAY_PIPE_TIMEOUT", "0"),
            ("RELAY_WS_PROTOCOLS", "chat v2"),
            ("RELAY_WS_PROTOCOLS", "chat\r\nX"),
            ("JWT_SECRET", ""),
        ] {
            let error = from(&[(key, value)]).expect_err(key).to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_name_that_no_setting_has_is_told_and_a_secret_in_its_place_is_not() {
        let file = "RELAY_PREFIX=1\nRELAY_PREFX=2\nOTHER=3\nJWT_SECRET: hidden=\nRELAY_HIDDEN-=\nRELAY_MAX_HOSTS=4";
        let variables = [("RELAY_MAX_HOSTS", "1"), ("RELAY_MAX_HOST", "2"), ("OTHER", "3"), ("RELAY_DATA_DIR", "4")];
        let variables = variables.map(|(key, value)| (OsString::from(key), OsString::from(value)));
        let given = Assignments::read(variables.into_iter(), file).unwrap();
        let settings = Settings::from_lookup(PathBuf::new(), |key| given.get(key)).unwrap();
        assert_eq!((settings.prefix.as_deref(), settings.max_hosts), (Some("1"), 1), "the environment wins");
        let told: Vec<_> = given.without_effect().into_iter().map(|oddity| oddity.sentence).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(told[0].contains("Line 2") && told[0].contains("RELAY_PREFX"), "{told:?}");
        assert!(told[1].contains("Line 4") && !told[1].contains("hidden"), "{told:?}");
        assert!(told[2].contains("Line 5") && !told[2].contains("HIDDEN"), "{told:?}");
        assert!(told[3].contains("variable RELAY_MAX_HOST "), "{told:?}");
    }

    #[test]
    fn every_setting_is_found_in_the_environment() {
        let is_found = |key: &str| given::PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        let get = |key: &str| if is_found(key) { Ok(None) } else { Err(unreadable(key, "no prefix is its beginning")) };
        assert_eq!(Settings::from_lookup(PathBuf::from("data"), get), Ok(Settings::default()));
    }

    #[test]
    fn a_secret_that_can_be_guessed_is_told() {
        assert_eq!(from(&[("JWT_SECRET", &"x".repeat(31))]).unwrap().oddities.len(), 1);
        assert_eq!(from(&[("JWT_SECRET", &"x".repeat(32))]).unwrap().oddities.len(), 0);
    }
}

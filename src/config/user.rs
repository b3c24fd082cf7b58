//! `[[user]]`: who may read or publish what, from where.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::bad_value::BadValue;
use super::read::{Faults, Field, Section};
use super::{PatternConfig, SECTIONS, StreamConfig};
use crate::access::{AddressRange, Right, Secrets, User};
use crate::file;
use crate::limits::{PASSWORD_BYTES_MAX, USER_NAME_BYTES_MAX, USERS_MAX};
use crate::media::name::{self, Pattern};
use crate::redact::redact;
use crate::wire::auth::Algorithm;

pub(super) const USER: Section = Section {
    name: "user",
    keys: &[
        "name",
        "password",
        "password_file",
        "password_credential",
        "ha1_sha256",
        "ha1_md5",
        "streams",
        "from",
        "may",
    ],
};

/// The keys of which a user needs one.
const SECRET_KEYS: &str =
    "password_file, password_credential, ha1_sha256 with ha1_md5 (`rtsprelay hash-password` makes them), or password";

/// Checks the name of a user.
///
/// # Errors
/// A sentence that says how to fix it.
pub fn user_name(text: &str) -> Result<String, BadValue> {
    if text.is_empty() || text.len() > USER_NAME_BYTES_MAX {
        return Err(format!("has {} bytes; write a name of 1 to {USER_NAME_BYTES_MAX}", text.len()).into());
    }
    let odd = |c: char| c.is_control() || matches!(c, ':' | '"' | '\\');
    match text.chars().find(|c| odd(*c)) {
        Some(found) => Err(format!("contains {found:?}, which players cannot send; write a name without it").into()),
        None => Ok(text.to_owned()),
    }
}

pub(super) fn users(
    field: &Field<'_, '_>,
    streams: &[StreamConfig],
    patterns: &[PatternConfig],
    faults: &mut Faults<'_>,
) -> Vec<Arc<User>> {
    let known = Known { streams, patterns };
    let mut users: Vec<Arc<User>> = Vec::new();
    let tables = field.tables(faults);
    if tables.len() > USERS_MAX {
        field.fault(faults, format!("there are {} users; the maximum is {USERS_MAX}", tables.len()));
    }
    for (span, table) in tables {
        USER.refuse_unknown(table, SECTIONS, faults);
        let get = |key| Field::of(&USER, table, key);
        let name = match get("name") {
            None => {
                faults.at(span.clone(), "user.name is missing; add the name that players send with the password");
                None
            }
            Some(field) => field.parsed(faults, "a name in quotes", user_name).inspect(|name| {
                if users.iter().any(|user| user.name == *name) {
                    field.fault(faults, format!("{name:?} is the name of another user; choose a different one"));
                }
            }),
        };
        // A user with errors still occupies its name, so that a duplicate is found.
        let name = name.unwrap_or_default();
        let secrets = secrets(&name, span.clone(), table, faults);
        let streams = get("streams").and_then(|field| self::streams(&field, &name, &known, faults)).unwrap_or_default();
        let from = get("from").map(|field| ranges(&field, faults)).unwrap_or_default();
        let may = get("may").map_or(vec![Right::Read], |field| rights(&field, faults));
        let [read, publish, administer] =
            [Right::Read, Right::Publish, Right::Administer].map(|right| may.contains(&right));
        users.push(Arc::new(User { name, secrets, streams, from, read, publish, administer }));
    }
    users
}

/// The password, from exactly one of the keys.
fn secrets(name: &str, span: std::ops::Range<usize>, table: &DeTable<'_>, faults: &mut Faults<'_>) -> Secrets {
    let get = |key| Field::of(&USER, table, key);
    let (sha256, md5) = (get("ha1_sha256"), get("ha1_md5"));
    let hashed = sha256.is_some() || md5.is_some();
    let ways = [get("password"), get("password_file"), get("password_credential")];
    let given = ways.iter().flatten().count() + usize::from(hashed);
    let who = if name.is_empty() { "this user".to_owned() } else { format!("user {name:?}") };
    if given == 0 {
        faults.at(span.clone(), format!("{who} has no password; write {SECRET_KEYS}"));
    }
    if given > 1 {
        faults.at(span, format!("{who} has {given} passwords; write one of {SECRET_KEYS}"));
        return Secrets::default();
    }
    for field in [&sha256, &md5, &ways[0]].into_iter().flatten() {
        faults.secret(field);
    }
    if hashed {
        if let (Some(field), None) = (&sha256, &md5) {
            let cure = "ffmpeg, GStreamer and VLC also need ha1_md5 (`rtsprelay hash-password` prints both)";
            faults.warn(field, format!("works only for players that support SHA-256; {cure}"));
        }
        let mut read = |field: Option<Field<'_, '_>>, algorithm: Algorithm| {
            let wanted = format!("{} hexadecimal digits, as `rtsprelay hash-password` makes them", algorithm.digits());
            let field = field?;
            let text = field.string(faults, &wanted)?;
            let good = text.len() == algorithm.digits() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !good {
                field.fault(faults, format!("has no {wanted}"));
            }
            good.then(|| text.to_ascii_lowercase())
        };
        return Secrets { sha256: read(sha256, Algorithm::Sha256), md5: read(md5, Algorithm::Md5) };
    }
    let [password, file, credential] = ways;
    let password = match (password, file, credential) {
        (Some(field), ..) => field.string(faults, "a password in quotes").map(|text| (field, text.to_owned())),
        (_, Some(field), _) => {
            let path = field.string(faults, "the path of a file in quotes").map(PathBuf::from);
            path.and_then(|path| from_file(&field, &path, true, faults)).map(|text| (field, text))
        }
        (_, _, Some(field)) => credential_path(&field, faults)
            .and_then(|path| from_file(&field, &path, false, faults))
            .map(|text| (field, text)),
        _ => None,
    };
    let Some((field, password)) = password else { return Secrets::default() };
    if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
        field
            .fault(faults, format!("gives a password of {} bytes; it needs 1 to {PASSWORD_BYTES_MAX}", password.len()));
    }
    Secrets::of(name, &password)
}

/// The file of a systemd credential (systemd.exec(5), `LoadCredential=`).
fn credential_path(field: &Field<'_, '_>, faults: &mut Faults<'_>) -> Option<PathBuf> {
    let name = field.string(faults, "the name of a credential in quotes")?;
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        field.fault(
            faults,
            "is not the name of a credential; write the name from LoadCredential= in the unit, without a path",
        );
        return None;
    }
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(directory) => Some(Path::new(&directory).join(name)),
        None => {
            field.fault(
                faults,
                "needs CREDENTIALS_DIRECTORY, which systemd sets: write LoadCredential= into the unit (`systemctl edit \
                 rtsprelay`), or use password_file",
            );
            None
        }
    }
}

/// The first line of a file. Warns of one that others can read if `exposed` is set.
fn from_file(field: &Field<'_, '_>, path: &Path, exposed: bool, faults: &mut Faults<'_>) -> Option<String> {
    let shown = redact(&path.display().to_string());
    if path.is_relative() {
        field.fault(faults, format!("{shown:?} is a relative path; write an absolute path, starting with /"));
        return None;
    }
    faults.reads(path);
    match file::first_line(path, PASSWORD_BYTES_MAX) {
        Ok((line, by_all)) => {
            if exposed && by_all {
                faults.warn(field, file::exposed_of_relay(shown));
            }
            Some(line)
        }
        Err(error) => {
            let cure = match error.kind() {
                std::io::ErrorKind::NotFound => "write the password into that file, or give another path",
                std::io::ErrorKind::PermissionDenied => "let the user that runs rtsprelay read it",
                _ => "check that it is a readable file with the password on its first line",
            };
            field.fault(faults, format!("{shown} cannot be read ({error}); {cure}"));
            None
        }
    }
}

/// The entries of a list of strings; a single one may be written without brackets.
fn strings<'d, 'i>(field: &Field<'d, 'i>, wanted: &str, faults: &mut Faults<'_>) -> Vec<(Field<'d, 'i>, &'d str)> {
    let items = match field.value.get_ref() {
        DeValue::Array(items) => items.iter().collect(),
        _ => vec![field.value],
    };
    if items.is_empty() {
        field.fault(faults, format!("is empty; write {wanted}, or remove the key"));
    }
    let mut read = |value| {
        let item = Field { path: field.path.clone(), value };
        let text = item.string(faults, wanted)?;
        Some((item, text))
    };
    items.into_iter().filter_map(&mut read).collect()
}

/// The streams that users can have rights to.
struct Known<'a> {
    streams: &'a [StreamConfig],
    patterns: &'a [PatternConfig],
}

impl Known<'_> {
    /// Whether there is, or can be, a stream that matches an entry.
    fn has(&self, entry: &str) -> bool {
        match Pattern::parse(entry) {
            Some(Ok(pattern)) => {
                self.streams.iter().any(|stream| pattern.part(&stream.name).is_some())
                    || self.patterns.iter().any(|known| known.pattern.meets(&pattern))
            }
            Some(Err(_)) => false,
            None => {
                self.streams.iter().any(|stream| stream.name == entry)
                    || name::check(entry).is_ok()
                        && self.patterns.iter().any(|known| known.pattern.part(entry).is_some())
            }
        }
    }

    /// The names, for an error message; names with errors of their own have been reported.
    fn names(&self) -> String {
        let streams = self.streams.iter().map(|stream| stream.name.clone());
        let patterns = self.patterns.iter().map(|pattern| pattern.pattern.to_string());
        let names: Vec<_> = streams.chain(patterns).filter(|name| !name.is_empty()).collect();
        if names.is_empty() { String::new() } else { format!("one of {}, or ", names.join(", ")) }
    }
}

/// The placeholder in a user's `streams` for the user's name.
const USER_NAME: &str = "{user}";

/// `streams`: the outer `None` for an error, the inner one for all streams.
fn streams(
    field: &Field<'_, '_>,
    user: &str,
    known: &Known<'_>,
    faults: &mut Faults<'_>,
) -> Option<Option<Vec<String>>> {
    let items = strings(field, "names of streams in quotes, or \"*\" for all", faults);
    if items.iter().any(|(_, name)| *name == "*") {
        return Some(None);
    }
    let mut entries = Vec::new();
    for (item, text) in &items {
        // A name with a slash or star would grant access to other users' streams.
        if text.contains(USER_NAME) && (name::check(user).is_err() || user.contains('/')) {
            item.fault(faults, "contains {user}, but this user's name cannot be part of a stream's name (letters, digits and - _ . ~); write the names of the streams");
            continue;
        }
        let entry = text.replace(USER_NAME, user);
        if !known.has(&entry) {
            let there = known.names();
            item.fault(faults, format!("there is no stream {:?}; write {there}\"*\" for all", redact(&entry)));
        }
        entries.push(entry);
    }
    Some(Some(entries))
}

pub(super) fn ranges(field: &Field<'_, '_>, faults: &mut Faults<'_>) -> Vec<AddressRange> {
    let mut ranges = Vec::new();
    for (item, text) in strings(field, "addresses and networks in quotes, such as \"10.0.0.0/8\"", faults) {
        match AddressRange::parse(text) {
            Ok(range) => ranges.push(range),
            Err(error) => item.fault(faults, redact(&error.to_string())),
        }
    }
    ranges
}

/// What it may.
fn rights(field: &Field<'_, '_>, faults: &mut Faults<'_>) -> Vec<Right> {
    let words = [Right::Read, Right::Publish, Right::Administer].map(|right| (right.name(), right));
    let items = strings(field, "\"read\", \"publish\", \"administer\", or some of them in a list", faults);
    items.into_iter().filter_map(|(item, _)| item.word(faults, &words)).collect()
}

//! Expands `${NAME}` in the configuration's strings to environment variables.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::bad_value::BadValue;
use super::read::Faults;

/// Expands variables in every string of a table, recursively. `$${` stands for `${`.
///
/// A variable's value can only become part of its string, because it is inserted after the document has been parsed.
pub(super) fn expand(table: &mut DeTable<'_>, lookup: &dyn Fn(&str) -> Option<String>, faults: &mut Faults<'_>) {
    for value in table.iter_mut().map(|(_, value)| value) {
        expand_value(value, lookup, faults);
    }
}

fn expand_value(value: &mut Spanned<DeValue<'_>>, lookup: &dyn Fn(&str) -> Option<String>, faults: &mut Faults<'_>) {
    let span = value.span();
    match value.get_mut() {
        DeValue::String(text) if text.contains("${") => match expanded(text, lookup) {
            Ok(new) => {
                if new.1 {
                    faults.expanded(span);
                }
                *text = new.0.into();
            }
            Err(why) => faults.at(span, why.to_string()),
        },
        DeValue::Array(items) => items.iter_mut().for_each(|item| expand_value(item, lookup, faults)),
        DeValue::Table(table) => expand(table, lookup, faults),
        _ => {}
    }
}

/// The text with variables expanded, and whether there were any.
fn expanded(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<(String, bool), BadValue> {
    let (mut out, mut any) = (String::with_capacity(text.len()), false);
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        // The text between the braces may be part of a password, so it is shown only if it is a valid name.
        let Some((name, behind)) = after.split_once('}').filter(|(name, _)| is_name(name)) else {
            return Err("\"${\" starts the name of an environment variable, such as ${CAMERA_PASSWORD}; write $${ for a literal ${".into());
        };
        let value = lookup(name).ok_or_else(|| {
            format!("${{{name}}} is not set in the relay's environment, or is not UTF-8; set it, or write $${{ for a literal ${{")
        })?;
        out.push_str(&value);
        any = true;
        rest = behind;
    }
    out.push_str(rest);
    Ok((out, any))
}

fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().all(is_part) && text.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::super::{Config, SourceKind, from_text_in};
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "POD_INDEX" => Some("1".into()),
            "PASSWORD" => Some("p\"]\n[[user]]".into()),
            "HOST" => Some("192.0.2.9".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn read(text: &str) -> Result<(Config, Option<usize>), Vec<String>> {
        let text = format!("{text}\n[[stream]]\nname = \"front\"\nsource = [\"rtsp://${{HOST}}/a\", \"rtsp://h/b\"]\n");
        from_text_in(&text, &environment).map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn values_are_put_in_wherever_a_string_is() {
        let (config, _) = read("only = \"${EMPTY}0/${POD_INDEX}\"\nlisten = [\"${HOST}:8${POD_INDEX}\"]").unwrap();
        assert_eq!(config.listen, ["192.0.2.9:81".parse().unwrap()]);
        let SourceKind::Cameras(cameras) = &config.streams[0].source else { panic!("{config:?}") };
        assert_eq!(cameras[0].to_string(), "rtsp://192.0.2.9/a");
    }

    #[test]
    fn a_value_is_a_part_of_its_string_whatever_it_says() {
        let user = "[[user]]\nname = \"a\"\npassword = \"${PASSWORD}\"\n";
        let (config, secret) = read(user).unwrap();
        assert_eq!(config.users.len(), 1);
        assert_eq!(config.users[0].secrets, crate::access::Secrets::of("a", "p\"]\n[[user]]"));
        assert_eq!(secret, None, "the file holds no password, and may be read by all");
        assert_eq!(read(&user.replace("${PASSWORD}", "$${x")).unwrap().1, Some(3), "that one is the password itself");
    }

    #[test]
    fn what_is_not_set_is_told_with_its_line_and_cure() {
        for (text, parts) in [
            ("\nlisten = \"${NOT_SET}:1\"", &["line 2: ", "${NOT_SET} is not set", "$${"][..]),
            ("listen = \"${}:1\"", &["line 1: ", "name of an environment variable"]),
            ("listen = \"${9}:1\"", &["line 1: ", "name of an environment variable"]),
            ("listen = \"${HOST\"", &["line 1: ", "name of an environment variable"]),
            ("listen = \"${hunter2!}\"", &["line 1: ", "name of an environment variable"]),
        ] {
            let faults = read(text).unwrap_err();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(parts.iter().all(|part| faults[0].contains(part)), "{faults:?}");
            assert!(!faults[0].contains("hunter2"));
        }
        assert_eq!(expanded("a$b $${x} $$ ${HOST}$", &environment), Ok(("a$b ${x} $$ 192.0.2.9$".into(), true)));
        assert_eq!(expanded("$${x}", &environment), Ok(("${x}".into(), false)));
    }
}

//! The kernel's and the resolver's errors, by number (errno(3), getaddrinfo(3)) and in the C library's words.

use crate::diagnose::Cause;

/// Number, words in the C library's spelling, and the cause that is named for them.
const ERRORS: &[(i32, &str, Cause)] = &[
    (2, "No such file or directory", Cause::MissingFile),
    (12, "Cannot allocate memory", Cause::OutOfMemory),
    (13, "Permission denied", Cause::PermissionDenied),
    (28, "No space left on device", Cause::DiskFull),
    (30, "Read-only file system", Cause::ReadOnlyFilesystem),
    (98, "Address already in use", Cause::AddressInUse),
    (111, "Connection refused", Cause::ConnectionRefused),
    (122, "Disk quota exceeded", Cause::DiskFull),
    // The resolver's numbers are negative.
    (-2, "Name or service not known", Cause::NameResolution),
    (-3, "Temporary failure in name resolution", Cause::NameResolution),
    (-5, "No address associated with hostname", Cause::NameResolution),
];

/// The cause that an error's number stands for.
pub(in crate::diagnose) fn by_number(number: i32) -> Option<Cause> {
    ERRORS.iter().find(|(known, ..)| *known == number).map(|(.., cause)| *cause)
}

/// The cause that an error's words stand for: exactly these, in this spelling.
pub(in crate::diagnose) fn by_words(words: &str) -> Option<Cause> {
    ERRORS.iter().find(|(_, known, _)| *known == words).map(|(.., cause)| *cause)
}

/// The cause of an error that ends the text behind a colon, and the text before that.
pub(super) fn at_end(text: &str) -> Option<(&str, Cause)> {
    let (before, words) = text.rsplit_once(": ")?;
    Some((before, by_words(words)?))
}

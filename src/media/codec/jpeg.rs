//! JPEG (RFC 2435): reconstructs the header that the packets omit.

/// The main header of a packet (section 3.1), and what follows.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// Offset of the packet's part in the scan.
    pub offset: usize,
    /// The type, without the bit for restart markers.
    pub kind: u8,
    /// The quality, or a value that means that tables follow.
    pub quality: u8,
    /// Pixels.
    pub width: u16,
    /// Pixels.
    pub height: u16,
    /// Units between restart markers, or 0.
    pub restart_interval: u16,
    /// What follows: tables, and part of the scan.
    pub rest: &'a [u8],
}

impl<'a> Header<'a> {
    /// Parses it; `None` if it is truncated.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (fixed, mut rest) = payload.split_at_checked(8)?;
        let mut kind = fixed[4];
        let mut restart_interval = 0;
        // Types 64 to 127 are 0 to 63 with restart markers (section 3.1.7).
        if (64..128).contains(&kind) {
            let (restart, more) = rest.split_at_checked(4)?;
            restart_interval = u16::from_be_bytes([restart[0], restart[1]]);
            (kind, rest) = (kind - 64, more);
        }
        Some(Header {
            offset: usize::from(fixed[1]) << 16 | usize::from(fixed[2]) << 8 | usize::from(fixed[3]),
            kind,
            quality: fixed[5],
            width: u16::from(fixed[6]) * 8,
            height: u16::from(fixed[7]) * 8,
            restart_interval,
            rest,
        })
    }
}

/// A whole picture from the payloads of its packets, in order; `None` if a part is missing.
pub fn picture<'a>(payloads: impl Iterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut picture: Option<(Vec<u8>, usize)> = None;
    for payload in payloads {
        let header = Header::parse(payload)?;
        match &mut picture {
            None if header.offset == 0 => {
                let (mut data, scan) = begin(&header)?;
                let made = data.len();
                data.extend_from_slice(scan);
                picture = Some((data, made));
            }
            Some((data, made)) if data.len() - *made == header.offset => data.extend_from_slice(header.rest),
            _ => return None,
        }
    }
    let (mut data, _) = picture?;
    if !data.ends_with(&[0xff, 0xd9]) {
        data.extend_from_slice(&[0xff, 0xd9]);
    }
    Some(data)
}

/// The JFIF headers for the picture that starts with this packet, and its entropy-coded data.
pub fn begin<'a>(header: &Header<'a>) -> Option<(Vec<u8>, &'a [u8])> {
    // Types above 1 belong to special hardware, and no camera is known to send them.
    if header.kind > 1 || header.width == 0 || header.height == 0 {
        return None;
    }
    let made;
    let (tables, wide, scan): (&[u8], u8, &[u8]) = match header.quality {
        0 => return None,
        1..=99 => {
            made = quantization(header.quality);
            (&made, 0, header.rest)
        }
        // The tables are in the packet (section 3.1.8).
        100..=127 => return None,
        128.. => {
            let (fixed, rest) = header.rest.split_at_checked(4)?;
            let (tables, scan) = rest.split_at_checked(usize::from(u16::from_be_bytes([fixed[2], fixed[3]])))?;
            (tables, fixed[1], scan)
        }
    };
    let mut data = vec![0xff, 0xd8];
    let mut rest = tables;
    let mut count = 0;
    while !rest.is_empty() && count < 2 {
        let precision = wide >> count & 1;
        let (table, more) = rest.split_at_checked(64 << precision)?;
        data.extend_from_slice(&[0xff, 0xdb, 0, (table.len() + 3) as u8, precision << 4 | count]);
        data.extend_from_slice(table);
        rest = more;
        count += 1;
    }
    if count == 0 {
        return None;
    }
    if header.restart_interval != 0 {
        data.extend_from_slice(&[0xff, 0xdd, 0, 4]);
        data.extend_from_slice(&header.restart_interval.to_be_bytes());
    }
    data.extend_from_slice(&[0xff, 0xc0, 0, 17, 8]);
    data.extend_from_slice(&header.height.to_be_bytes());
    data.extend_from_slice(&header.width.to_be_bytes());
    let luma = if header.kind == 0 { 0x21 } else { 0x22 };
    let chroma_table = u8::from(count > 1);
    data.extend_from_slice(&[3, 1, luma, 0, 2, 0x11, chroma_table, 3, 0x11, chroma_table]);
    for (id, counts, values) in [
        (0x00, &DC_LUMA_COUNTS, &DC_VALUES[..]),
        (0x10, &AC_LUMA_COUNTS, &AC_LUMA_VALUES[..]),
        (0x01, &DC_CHROMA_COUNTS, &DC_VALUES[..]),
        (0x11, &AC_CHROMA_COUNTS, &AC_CHROMA_VALUES[..]),
    ] {
        data.extend_from_slice(&[0xff, 0xc4, 0, (3 + 16 + values.len()) as u8, id]);
        data.extend_from_slice(counts);
        data.extend_from_slice(values);
    }
    data.extend_from_slice(&[0xff, 0xda, 0, 12, 3, 1, 0x00, 2, 0x11, 3, 0x11, 0, 63, 0]);
    Some((data, scan))
}

/// The two tables of a quality from 1 to 99 (section 4.2), in zigzag order.
fn quantization(quality: u8) -> [u8; 128] {
    let quality = i32::from(quality);
    let scale = if quality < 50 { 5000 / quality } else { 200 - quality * 2 };
    let mut tables = [0; 128];
    for (index, table) in tables.iter_mut().enumerate() {
        let base = if index < 64 { LUMA_QUANTIZERS[ZIGZAG[index]] } else { CHROMA_QUANTIZERS[ZIGZAG[index - 64]] };
        *table = ((i32::from(base) * scale + 50) / 100).clamp(1, 255) as u8;
    }
    tables
}

/// The position of each coefficient in a block, in coding order (ITU-T T.81 figure A.6).
const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// ITU-T T.81 table K.1, row by row.
const LUMA_QUANTIZERS: [u8; 64] = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
];

/// ITU-T T.81 table K.2, row by row.
const CHROMA_QUANTIZERS: [u8; 64] = [
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99,
];

/// ITU-T T.81 tables K.3 to K.6: the number of codes of each length, and their values.
const DC_LUMA_COUNTS: [u8; 16] = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
const DC_CHROMA_COUNTS: [u8; 16] = [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0];
const DC_VALUES: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
const AC_LUMA_COUNTS: [u8; 16] = [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7d];
const AC_CHROMA_COUNTS: [u8; 16] = [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77];
const AC_LUMA_VALUES: [u8; 162] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71, 0x14,
    0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09,
    0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a,
    0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65,
    0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88,
    0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9,
    0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca,
    0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea,
    0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
];
const AC_CHROMA_VALUES: [u8; 162] = [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22, 0x32,
    0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16,
    0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x35, 0x36, 0x37, 0x38, 0x39,
    0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64,
    0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x82, 0x83, 0x84, 0x85, 0x86,
    0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7,
    0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8,
    0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9,
    0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
];

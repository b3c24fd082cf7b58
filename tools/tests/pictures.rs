//! The viewer's pictures match what ffmpeg decodes from the same frames.

mod common;

use std::path::Path;
use std::time::{Instant, SystemTime};

use common::{Demo, Folder, ffmpeg, play, psnr, read_png, summary, turn};
use rtsprelay_view::decode::{Decoder, Outcome};
use rtsprelay_view::frame::{Codec, Frame};

/// The PSNR that counts as the same picture, in dB.
const PSNR_MIN: f64 = 35.0;

const CLIP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/pattern.h264");

#[test]
fn three_hundred_frames_of_the_demo_decode_without_an_error() {
    let _turn = turn();
    let demo = Demo::start();
    for transport in ["tcp", "udp"] {
        let (lines, code) = play(&[&demo.address, "--transport", transport, "--headless", "--frames", "300"]);
        let sum = summary(&lines);
        assert_eq!(code, 0, "{sum}");
        assert_eq!(sum["frames_decoded"], 300, "{sum}");
        for fault in ["errors", "malformed", "lost", "dropped_damaged", "dropped_waiting", "reconnects"] {
            assert_eq!(sum[fault], 0, "{fault} in {sum}");
        }
        let fps = sum["fps"].as_f64().expect("a number");
        // Half or twice as much would be a fault; smaller deviations come from the machine's load.
        assert!((24.0..36.0).contains(&fps), "{fps} frames a second");
        assert_eq!(sum["latency_clock"], "stamp");
        assert!(sum["latency_ms"]["p50"].as_f64() >= sum["receive_latency_ms"]["p50"].as_f64(), "{sum}");
        assert!(sum["audio_packets"].as_u64() > Some(400), "{sum}");
        println!("{transport}: {sum}");
    }
}

#[test]
fn a_snapshot_has_the_colours_that_ffmpeg_decodes() {
    let _turn = turn();
    let (demo, folder) = (Demo::start(), Folder::new("colours"));
    let file = folder.file("snapshot.png");
    let (lines, code) = play(&[&demo.address, "--frames", "40", "--snapshot", &file]);
    assert_eq!(code, 0);
    let (pixels, width) = read_png(Path::new(&file));
    assert_eq!((width, pixels.len()), (640, 640 * 360 * 3));
    // The demo loops a clip of 120 frames, and its stamps count the frames.
    let frame = summary(&lines)["last_stamp_frame"].as_u64().expect("a stamp") % 120;
    let select = format!("select=eq(n\\,{frame})");
    let wanted = ffmpeg(&["-i", CLIP, "-vf", &select, "-frames:v", "1", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]);
    let ratio = psnr(&pixels, &wanted);
    println!("frame {frame}: PSNR {ratio:.1} dB");
    assert!(ratio > PSNR_MIN, "PSNR {ratio:.1} dB");
}

/// Encodes two seconds of ffmpeg's test picture with these options, decodes them both ways, and compares every picture.
fn same_as_ffmpeg(name: &str, codec: Codec, encode: &[&str]) {
    let folder = Folder::new(name);
    let file = folder.file("clip.bin");
    let source = "testsrc2=size=320x240:rate=30";
    let input = ["-y", "-f", "lavfi", "-i", source, "-frames:v", "60"];
    ffmpeg(&[&input[..], encode, &[&file]].concat());
    let clip = std::fs::read(&file).expect("ffmpeg wrote it");
    // First converted to 8 bits: from 10 bits, ffmpeg interpolates the chroma, which the viewer does not.
    let wanted = ffmpeg(&[
        "-i",
        &file,
        "-vf",
        "format=yuv420p",
        "-pix_fmt",
        "rgb24",
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
        "-",
    ]);
    let mut decoder = Decoder::new(codec);
    let (mut pictures, mut worst) = (0, f64::INFINITY);
    for (number, unit) in access_units(codec, &clip).into_iter().enumerate() {
        let frame = Frame {
            data: unit,
            timestamp: number as i64,
            arrived: Instant::now(),
            arrived_wall: SystemTime::now(),
            stamp: None,
            age: None,
            keyframe: number == 0,
            damaged: false,
            after_loss: false,
            catching_up: false,
        };
        let outcome = decoder.decode(&frame, &mut |picture| {
            let rgb = picture.to_rgb();
            worst = psnr(&rgb, &wanted[pictures * rgb.len()..][..rgb.len()]).min(worst);
            pictures += 1;
        });
        assert_eq!(outcome, Outcome::Decoded);
    }
    println!("{name}: {pictures} pictures, PSNR at least {worst:.1} dB");
    // Some pictures are still in the decoder's reordering buffer.
    assert!(pictures >= 54, "{pictures} pictures");
    assert!(worst > PSNR_MIN, "PSNR {worst:.1} dB");
}

/// Cuts a stream at its access unit delimiters.
fn access_units(codec: Codec, stream: &[u8]) -> Vec<Vec<u8>> {
    let delimiter: &[u8] = if codec == Codec::H264 { &[0, 0, 0, 1, 9] } else { &[0, 0, 0, 1, 0x46, 1] };
    let mut starts: Vec<usize> = (0..stream.len()).filter(|&at| stream[at..].starts_with(delimiter)).collect();
    starts.push(stream.len());
    starts.windows(2).map(|pair| stream[pair[0]..pair[1]].to_vec()).collect()
}

#[test]
fn h264_high_profile_with_b_pictures_is_decoded_as_ffmpeg_does() {
    let _turn = turn();
    let options = "aud=1:keyint=30:bframes=3:b-adapt=0";
    same_as_ffmpeg(
        "h264-b",
        Codec::H264,
        &["-pix_fmt", "yuv420p", "-c:v", "libx264", "-x264-params", options, "-f", "h264"],
    );
}

#[test]
fn h264_for_low_latency_is_decoded_as_ffmpeg_does() {
    let _turn = turn();
    let encode =
        ["-pix_fmt", "yuv420p", "-c:v", "libx264", "-tune", "zerolatency", "-x264-params", "aud=1", "-f", "h264"];
    same_as_ffmpeg("h264-zero", Codec::H264, &encode);
}

#[test]
fn h265_with_b_pictures_is_decoded_as_ffmpeg_does() {
    let _turn = turn();
    let options = "aud=1:keyint=30:bframes=3:log-level=none";
    let encode = ["-pix_fmt", "yuv420p", "-c:v", "libx265", "-x265-params", options, "-f", "hevc"];
    same_as_ffmpeg("h265-b", Codec::H265, &encode);
}

#[test]
fn h265_of_ten_bits_is_decoded_as_ffmpeg_does() {
    let _turn = turn();
    let options = "aud=1:keyint=30:bframes=0:log-level=none";
    let encode = ["-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-x265-params", options, "-f", "hevc"];
    same_as_ffmpeg("h265-10", Codec::H265, &encode);
}

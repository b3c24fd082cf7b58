"""Plays an RTSP URL with OpenCV's VideoCapture and says in JSON what it saw.

    opencv_player.py URL FRAMES
"""

import json
import sys

import cv2


def main():
    url, frames = sys.argv[1], int(sys.argv[2])
    capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG)
    seen = {"opened": capture.isOpened(), "codecs": [], "width": 0, "height": 0, "times": [], "problems": []}
    if capture.isOpened():
        fourcc = int(capture.get(cv2.CAP_PROP_FOURCC))
        seen["codecs"].append("".join(chr(fourcc >> shift & 0xFF) for shift in (0, 8, 16, 24)))
        while len(seen["times"]) < frames:
            took, picture = capture.read()
            if not took:
                seen["problems"].append(f"no frame after {len(seen['times'])}")
                break
            seen["height"], seen["width"] = picture.shape[:2]
            seen["times"].append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    capture.release()
    print(json.dumps(seen))


main()

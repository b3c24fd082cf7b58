#!/bin/sh
# Makes pattern.h264, the picture of the built-in test source: 640x360, 30 fps, 4 s, a keyframe every second.
#
# Everything that moves does so with a period that divides the clip's 120 frames, so that frame 120 would be frame 0 again
# and the clip loops without a seam. One slice a frame, no B-frames, parameter sets before every keyframe, no encoder's
# SEI, no access unit delimiters: what the source adds to a frame, it adds itself.
set -eu
cd "$(dirname "$0")"

# A turn is 2*PI over the whole clip.
turn="2*PI*N/120"
# Slow waves of colour behind; a ball on an ellipse, twice round; a scale at the foot that moves by 4 px a frame, 20 px a mark.
ball="lt(hypot(X-320-210*cos(2*$turn)\,Y-165-95*sin(2*$turn))\,34)"
foot="gte(Y\,330)"
mark="lt(mod(X+N*4\,40)\,20)"
luma="if($foot\,if($mark\,200\,60)\,if($ball\,225\,110+34*sin(X/70+$turn)+26*sin(Y/45-2*$turn)+18*sin((X+Y)/90+$turn)))"
cb="if($foot\,128\,if($ball\,90\,128+46*sin(X/60+Y/80+$turn)))"
cr="if($foot\,128\,if($ball\,150\,128+46*sin(X/90-Y/50-$turn)))"

ffmpeg -hide_banner -loglevel warning -y \
    -f lavfi -i "color=black:size=640x360:rate=30:duration=4,format=yuv420p,\
geq=lum='$luma':cb='$(echo "$cb" | sed 's/X/(2*X)/g; s/Y/(2*Y)/g')':cr='$(echo "$cr" | sed 's/X/(2*X)/g; s/Y/(2*Y)/g')',\
drawtext=text='rtsprelay test pattern':fontsize=26:fontcolor=white:borderw=2:x=20:y=16,\
drawtext=text='%{eif\\:n\\:d\\:3}':fontsize=26:fontcolor=white:borderw=2:x=570:y=16" \
    -frames:v 120 -c:v libx264 -profile:v main -preset veryslow -crf "${CRF:-21}" -pix_fmt yuv420p \
    -bf 0 -g 30 -keyint_min 30 -sc_threshold 0 -threads 1 \
    -x264-params "slices=1:repeat-headers=1:aud=0:rc-lookahead=60:nal-hrd=none" \
    -bsf:v "filter_units=remove_types=6" -f h264 pattern.h264
ls -l pattern.h264

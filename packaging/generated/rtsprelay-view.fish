complete -c rtsprelay-view -l transport -d 'How the media is transported' -r -f -a "tcp\t'In the RTSP connection'
udp\t'In datagrams of their own'"
complete -c rtsprelay-view -l user -d 'The user name' -r
complete -c rtsprelay-view -l password-file -d 'A file with the password on its first line' -r -F
complete -c rtsprelay-view -l frames -d 'Stop after this many decoded pictures' -r
complete -c rtsprelay-view -l seconds -d 'Stop after this many seconds' -r
complete -c rtsprelay-view -l snapshot -d 'Write the last picture to this PNG file at exit; without other options, write the first picture and stop' -r -F
complete -c rtsprelay-view -l patience -d 'Without a window or terminal: give up after this many seconds without a new picture' -r
complete -c rtsprelay-view -l window -d 'Always show in a window'
complete -c rtsprelay-view -l terminal -d 'Always show in the terminal'
complete -c rtsprelay-view -l headless -d 'Show no picture: print a line of numbers every second'
complete -c rtsprelay-view -l json -d 'Print the numbers as JSON, one object per line; shows no picture'
complete -c rtsprelay-view -l fullscreen -d 'Start in full screen'
complete -c rtsprelay-view -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rtsprelay-view -s V -l version -d 'Print version'

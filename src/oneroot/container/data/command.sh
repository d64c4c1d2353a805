#!/bin/sh
# Written by oneroot create, run by the base's tini. It ends in exec, so that signals reach the command.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HOME=/root
LANG=C.UTF-8
export PATH HOME LANG
umask 022

# /run is empty at every start: make the directories that the base's packages declare below it.
set -f
own() {
	[ -d "$1" ] && return
	mkdir -p -m "$2" -- "$1" && case $3:$4 in root:root) ;; *) chown -- "$3:$4" "$1" ;; esac
}
declared() {
	while read -r kind path mode user group rest; do
		case $kind in [dDvqQ]*) ;; *) continue ;; esac
		case $path in
		/var/run/*) path=/run/${path#/var/run/} ;;
		/var/lock/*) path=/run/lock/${path#/var/lock/} ;;
		esac
		case $path in
		*%* | *[\"\']* | /run/systemd* | /run/log* | /run/user* | /run/udev* | /run/credentials*) ;;
		/run/?*)
			mode=${mode#[~:]}
			case $mode in - | '') mode=0755 ;; esac
			case $user in - | '') user=root ;; esac
			case $group in - | '') group=root ;; esac
			own "$path" "$mode" "$user" "$group"
			;;
		esac
	done <"$1"
}
own /run/lock 1777 root root
set +f
for file in /etc/tmpfiles.d/*.conf /usr/lib/tmpfiles.d/*.conf; do
	if [ -f "$file" ]; then declared "$file"; fi
done
unset kind path mode user group rest file
unset -f own declared

exec @COMMAND@

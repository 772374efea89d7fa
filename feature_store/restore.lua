-- Restore a partition: an incarnation is filled that nobody looks at, and becomes the partition's when it is whole.
--
-- KEYS[1]  {ns:p}:meta       compared; commit: written anew
-- KEYS[2]  {ns:p}:restoring  hash: token, until (ms of this server's clock), incarnations (those to be thrown away)
-- ARGV     begin, renew, commit or end; a token that names the restore; its incarnation; ms for which it is granted;
--          replace (1 or nothing); name of what is restored; MessagePack of the new meta (commit)
-- Returns  {'OK', incarnations to be thrown away} | {'DONE', the same}: this very thing was restored before
--          {'BUSY', ms left of another restore} | {'STANDS'}: the partition holds features | {'LOST'}: it took too long
-- Nothing but commit touches what readers and writers of the partition see.
local verb, token, incarnation, replace, name = ARGV[1], ARGV[2], ARGV[3], ARGV[5] == '1', ARGV[6]
local meta, lock = KEYS[1], KEYS[2]
local held = redis.call('HMGET', lock, 'token', 'until', 'incarnations')
local stands = redis.call('HMGET', meta, 'incarnation', 'sequence', 'restored')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local left = tonumber(held[2] or '0') - now
local past = held[3] or ''

if verb == 'begin' then
  if left > 0 and held[1] ~= token then return {'BUSY', left} end
elseif held[1] ~= token or left <= 0 then
  return {'LOST'}
end
local done = stands[1] and (stands[1] == incarnation or (stands[3] == name and not replace))
if verb == 'end' then
  redis.call('DEL', lock)
  return {'OK', ''}
end
if not done and not replace and stands[1] and stands[2] ~= '0' then return {'STANDS'} end
if verb == 'commit' then
  if done then return {'DONE', past} end
  if stands[1] then past = past .. ' ' .. stands[1] end
  local kept = {}
  for one in string.gmatch(past, '%S+') do
    if one ~= incarnation then kept[#kept + 1] = one end
  end
  past = table.concat(kept, ' ')
  local fields = cmsgpack.unpack(ARGV[7])
  redis.call('DEL', meta)
  for i = 1, #fields, 2 do redis.call('HSET', meta, fields[i], fields[i + 1]) end
  redis.call('HSET', lock, 'incarnations', past)
  return {'OK', past}
end
if verb == 'begin' and not done then past = past .. ' ' .. incarnation end
redis.call('HSET', lock, 'token', token, 'until', string.format('%.0f', now + ARGV[4]), 'incarnations', past)
return {done and 'DONE' or 'OK', past}

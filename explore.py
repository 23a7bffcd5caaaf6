import sys; sys.path.insert(0,'bench')
import itertools
from tuning import simulate as S, table
from tuning.simulate import *
from thalweg.tuning import race as R
class T:
    def __init__(s,p): s.p=p
    def score(s,rate,share):
        rate=nearest(rate)
        return s.p.full(rate) if share==1 else s.p.cooled(rate,share)
def strat(idx,stages,widen):
    def play(p):
        R.WIDENINGS=widen
        rates=[RATES[i] for i in idx]
        return nearest(R.race(T(p),rates,stages)[0])
    return play
half=sys.argv[1] if len(sys.argv)>1 else 'dev'
tasks=[t for t in (DEVELOPMENT if half=='dev' else HELD_OUT) if is_whole(t) and t!='tiny']
print(tasks)
out=[]
sets=[(4,6,8),(5,7,9),(4,7,10),(5,8),(3,5,7,9),(4,6,8,10),(5,6,7,8,9),(4,5,6,7,8,9),(3,4,5,6,7,8,9,10),(5,7,8,9),(6,8,10),(7,8,9),(6,7,8,9),(3,6,9),(5,6,7,8,9,10)]
sts=[[R.Stage(.1,1)],[R.Stage(.2,1)],[R.Stage(.35,1)],[R.Stage(.5,1)],[R.Stage(.1,2),R.Stage(.5,1)],[R.Stage(.1,3),R.Stage(.35,1)],[R.Stage(.2,2),R.Stage(.5,1)],[R.Stage(.2,3),R.Stage(.5,1)],[R.Stage(.1,3),R.Stage(.2,2),R.Stage(.5,1)],[R.Stage(.1,3),R.Stage(.5,1)],[R.Stage(.35,2),R.Stage(1,1)],[R.Stage(.2,2),R.Stage(1,1)],[R.Stage(.2,3),R.Stage(1,1)],[R.Stage(1,1)]]
for i in sets:
  for st in sts:
    for w in (0,1,2):
      m,wst,price,which=result(strat(i,st,w),tasks)
      out.append((price,m,wst,which,i,[tuple(x) for x in st],w))
out.sort()
best=9
for lo,hi in ((1,1.6),(1.6,1.9),(1.9,2.15),(2.15,2.4),(2.4,3),(3,4.1),(4.1,6),(6,12)):
    c=sorted([o for o in out if lo<o[0]<=hi],key=lambda o:o[1])[:6]
    print(lo,hi)
    for o in c: print('   %.2fU mean %.3f worst %.2f %s %s %s w%d'%o)
